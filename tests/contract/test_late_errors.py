"""Every error that can stop a run after `prepare` has a reason why `plan` does not report it.

`_LATE` lists each `raise` of one of our errors in the folders of later stages, by file and function, in source order.
Each entry is one of three:

- `plan MODULE:FUNCTION`: this check of `plan` finds the error; the raise covers later changes and other callers
- `not before: REASON`: nothing can find the error before
- `command: NAME`: the error belongs to another command or Python function, which checks before it starts

A new `raise` needs an entry. If `plan` could find the error, write the check first.
"""

import ast
import importlib
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.contract.sources import Source, sources

from tunesmith.core import errors

FOLDERS = ("train", "evaluate", "model", "distributed", "kernels", "inference", "scoring", "promote", "proof")
_OUR_ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}

_SCORE = "command: score and verdict, whose files are the user's"
_ADAPTERS = "command: AdapterSet"
_ASKING = "command: generate and chat"
_MACHINE = "plan tunesmith.pipeline.checks:require_machine"
_REHEARSED = "plan tunesmith.data.rehearsal:rehearse"
_ARGUMENTS = "command: a caller of the Python function passed wrong arguments; stages pass their own results"
_DAMAGE = "not before: a file was damaged after it was written"
_MEMORY = "not before: plan estimates the memory of a pass; only the pass shows it"

_COMPARED = "command: compare"
_PROVED = "not before: it follows from what the engine answers"
_COMPARABLE = "plan tunesmith.pipeline.checks:check_version_to_replace"
_INCUMBENT = "not before: the alias may move until the promotion"

_LATE: dict[str, tuple[str, ...]] = {
    "evaluate/comparison.py _first_run": (_COMPARED,),
    "evaluate/comparison.py compare_references": (_COMPARED,) * 3,
    "evaluate/endpoint_answers.py ask_endpoint": (_COMPARED,) * 2,
    "evaluate/own_prompts.py _row_values": (_COMPARABLE,),
    "evaluate/own_prompts.py _turns": (_COMPARABLE,),
    "evaluate/own_prompts.py own_prompts": (_COMPARABLE,),
    "evaluate/own_prompts.py without_likelihoods": (_COMPARABLE,),
    "evaluate/incumbent.py refuse_incomparable": (_COMPARABLE,),
    "evaluate/incumbent_verdict.py compare_with_incumbent": (_INCUMBENT,),
    "evaluate/harness_process.py ask_harness": (
        "not before: the harness failed after its tasks had been checked",
        "plan tunesmith.evaluate.harness_process:check_tasks",
    ),
    "evaluate/harness_process.py check_tasks": ("plan tunesmith.evaluate.harness_process:check_tasks",),
    "inference/answerable.py check_positions": ("plan tunesmith.pipeline.checks:check_prompts",),
    "promote/commands.py promote_run": ("command: promote",),
    "model/plain_folder.py _as_dtype": ("command: export",),
    "promote/mirror.py mirror": ("not before: the other registry did not answer after the version was stored",),
    "promote/promote.py check_promotion": ("command: promote, as `run` leaves the stage out without the section",),
    "model/adapter_set.py AdapterSet.__init__": (_ADAPTERS,),
    "model/adapter_set.py AdapterSet._require_base": (_ADAPTERS,) * 3,
    "model/adapter_set.py AdapterSet.add": (_ADAPTERS,) * 2,
    "model/adapter_set.py AdapterSet._known": (_ADAPTERS,),
    "model/adapter_set.py AdapterSet.combine": (_ADAPTERS,) * 3,
    "model/adapters.py attach_adapter": (
        "not before: only for an adapter as the base, whose weights need torch",
        _DAMAGE, _DAMAGE, _DAMAGE,
    ),
    "model/experts.py require_adaptable": ("plan tunesmith.pipeline.checks:recipe_warnings",),
    "model/trainable.py make_trainable": ("not before: peft refuses modules whose kind no file names",),
    "model/trainable.py enable_activation_checkpointing": (
        "not before: known when transformers has built the model",
    ),
    "model/adapters.py restore_weights": (_DAMAGE,) * 2,
    "kernels/causality_check.py require_causal_attention": (
        "not before: forward passes prove it; tunesmith.architecture.causality:require_causal checks the configuration "
        "in plan",
    ),
    "inference/answer_log.py _check_job": (_ASKING,) * 2,
    "inference/answer_log.py open_answer_log": (_ASKING,) * 2,
    "inference/endpoint.py Endpoint.parse": (_COMPARED,),
    "inference/file_prompts.py FilePrompts.__init__": (_ASKING,),
    "inference/chatter.py Chatter.encode_prompt": (_ASKING,),
    "inference/chatter.py Chatter.ask": (_ASKING,),
    "inference/chatter.py Chatter.turns_of_row": (_ASKING,) * 2,
    "inference/chatter.py Chatter.turns_of_text": (_ASKING,),
    "inference/chatter.py open_prompts": (_ASKING,) * 2,
    "inference/endpoint.py ask_chat": (_COMPARED,) * 2,
    "inference/generate.py generate": (_MEMORY,),
    "inference/sampling.py _require_temperature": (_ASKING,),
    "inference/sampling.py draw": (_ASKING,),
    "inference/sampling.py check_generation_options": (_ASKING,),
    "inference/sampling.py require_option": (_ASKING,),
    "inference/session.py Session.check": (_ARGUMENTS,) * 3,
    "model/load.py _refuse_unused_layers": (
        "not before: the weights that an architecture reads are known when transformers has built it",
    ),
    "model/load.py _refuse_overflow": (_MACHINE,),
    "model/load.py load_base": (
        "plan tunesmith.architecture.weight_headers:tensor_shapes",
        "not before: transformers reads the architecture's code when it builds the model",
        "not before: which weights an architecture asks for is known when transformers has built it",
    ),
    "model/load.py choose_compute": (_MACHINE,),
    "model/new_tokens.py trainable_token_indices": (
        *("plan tunesmith.architecture.base_model:require_trainable_rows",) * 2,
        "not before: only for weights that contradict their configuration, which transformers finds when it loads them",
    ),
    "kernels/oom.py OomRetry._halve": (_MEMORY,),
    "kernels/oom.py OomRetry.run": (_MEMORY,),
    "distributed/process_group.py ProcessGroup.raise_if_interrupted": ("not before: a signal came",),
    "distributed/process_group.py ProcessGroup.require_equal": ("not before: another machine has other files",),
    "distributed/process_group.py _translate_peer_failures": (
        "not before: another process ended, or a port is taken",
    ) * 2,
    "model/quantization.py require_bitsandbytes": (_MACHINE,),
    "model/quantization.py require_quantization": (_MACHINE,) * 2,
    "distributed/fsdp.py _mesh": ("not before: machines differ from each other",),
    "distributed/fsdp.py raise_if_sharded": (_MEMORY,),
    "distributed/fsdp.py shard": ("not before: which modules are layers is known when the model is built",),
    "proof/prove.py require_proved": (_PROVED,),
    "proof/record.py parse_proof": (_DAMAGE,),
    "proof/tolerances.py tolerance_for": ("command: prove and export, which check the type before they start",),
    "scoring/unscorable.py check_scorable": ("plan tunesmith.pipeline.checks:check_prompts",),
    "scoring/bootstrap.py Sample.score": ("not before: it follows from the answers",),
    "scoring/sql_execution.py _Worker._start": ("not before: the system starts no process", _REHEARSED),
    "scoring/sql_execution.py _check_database": (_REHEARSED,) * 2,
    "scoring/sql_execution.py _score": (_REHEARSED,),
    "scoring/json_metrics.py _reference_leaves": (_REHEARSED,),
    "scoring/tool_calls.py _reference_calls": (_REHEARSED,),
    "scoring/metrics.py _check_rows": (_ARGUMENTS,) * 4,
    "scoring/metrics.py execution": ("plan tunesmith.recipe.validation:find_contradictions",),
    "scoring/metrics.py expand_metrics": ("plan tunesmith.recipe.validation:find_contradictions",),
    "scoring/metrics.py score": (_ARGUMENTS,),
    "scoring/custom.py CustomMetric.__call__": (_ARGUMENTS, _REHEARSED, _REHEARSED),
    "scoring/custom.py CustomMetric.__init__": (_REHEARSED,),
    "scoring/custom.py CustomMetric._load_function": (_REHEARSED,) * 4,
    "scoring/custom.py CustomMetric._to_finite_float": (_REHEARSED,),
    "scoring/custom.py _check_arguments": (_REHEARSED,),
    "scoring/replicates.py replicated_verdict": ("plan tunesmith.recipe.load:load_recipe",),
    "scoring/replicates.py mean_rows": (_ARGUMENTS,),
    "evaluate/replicates.py replicate_models": (_DAMAGE,),
    "scoring/row_scores.py compare": ("not before: no row had an answer of both models",),
    "scoring/standalone.py _rows_by_id": (_SCORE,),
    "scoring/standalone.py _check_min_gain": (_SCORE,),
    "scoring/standalone.py _group_key": (_SCORE,),
    "scoring/standalone.py _infer_metric": (_SCORE,),
    "scoring/standalone.py _pair_rows": (_SCORE,) * 3,
    "scoring/standalone.py _lookup_key": (_SCORE,),
    "scoring/standalone.py _read_rows": (_SCORE,) * 2,
    "scoring/standalone.py _read_text": (_SCORE,) * 3,
    "scoring/standalone.py _check_values": (_SCORE,),
    "scoring/standalone.py score_file": (_SCORE,) * 3,
    "scoring/verdict.py _check_rows": ("plan tunesmith.data.dataset:build_dataset", _ARGUMENTS),
    "scoring/verdict.py _check_settings": (_ARGUMENTS,),
    "scoring/verdict.py _check_weights": (_ARGUMENTS, "not before: no row has a token to score"),
    "scoring/verdict.py _to_array": ("not before: it follows from the answers",),
    "train/crash_loop.py _count_attempt": ("not before: training was killed twice at one step",),
    "train/checkpoint.py latest_state": (_DAMAGE,),
    "train/inputs.py require_same_inputs": ("plan tunesmith.pipeline.stage_state:stage_states",),
    "train/loop.py train_steps": ("not before: training became non-finite",) * 2,
    "train/optim.py restore_optimizer": (_DAMAGE,) * 2,
    "train/validate.py Validation.measure": ("not before: training became non-finite",),
}  # fmt: skip


def raises(source: Source) -> Iterator[str]:
    """Yield `file function` for each raise of one of our errors, or of the result of one of our functions."""
    yield from _raises_below(source.tree, source.name, ())


def _raises_below(node: ast.AST, file: str, scope: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and _is_ours(child.exc):
            yield f"{file} {'.'.join(scope)}"
        opens_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _raises_below(child, file, (*scope, child.name) if opens_scope else scope)


def _is_ours(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    return name in _OUR_ERRORS or name.lstrip("_")[:1].islower()


def _count_raises() -> dict[str, int]:
    """Return {`file function`: number of raises}."""
    return Counter(place for source in sources() if source.folder in FOLDERS for place in raises(source))


def test_every_late_error_has_a_reason() -> None:
    counts, reviewed = _count_raises(), {place: len(reasons) for place, reasons in _LATE.items()}
    assert {place: count for place, count in counts.items() if reviewed.get(place) != count} == {}, "add their entries"
    assert reviewed.keys() - counts.keys() == set(), "these no longer raise anything"


def test_every_reason_is_of_a_known_kind_and_names_an_existing_check() -> None:
    for place, reasons in _LATE.items():
        for reason in reasons:
            kind, _, name = reason.partition(" ")
            if kind == "plan":
                module, _, function = name.partition(":")
                assert callable(getattr(importlib.import_module(module), function)), place
            else:
                assert reason.startswith(("not before: ", "command: ")), place


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("raise RecipeError('x')", 1),
        ("raise errors.DataError('x') from None", 1),
        ("raise _non_finite(1)", 1),
        ("raise", 0),
        ("raise error", 0),
        ("raise ValueError('x')", 0),
        ("if x:\n        raise DoesNotFit('x')\n    raise DamagedFile('y')", 2),
    ],
)
def test_the_rule_finds_counter_examples(line: str, count: int) -> None:
    assert list(raises(Source("train/x.py", f"class A:\n  def f(self):\n    {line}"))) == ["train/x.py A.f"] * count
