"""Run one model on the test rows and score its answers; base, tuned and incumbent go through this code alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.architecture.families import shapes_of
from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.progress import log
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.data.fit import fits_for_inference
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import load_device, memory_budget, shard
from tunesmith.distributed.process_group import ProcessGroup, current_group
from tunesmith.estimate.throughput import save_generation_speed, speed_key
from tunesmith.evaluate.model_outputs import generate_answers, score_likelihoods
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.answerable import check_positions
from tunesmith.inference.prompts import UNSCORED_ANSWERS, Prompts, build_prompts
from tunesmith.inference.scorer import Scorer
from tunesmith.kernels.causality_check import require_causal_attention
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, compute_config, max_positions
from tunesmith.model.memory import free_memory
from tunesmith.model.quantization import quantization_of
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.model import tokens_to_add
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.validation import sharding_unsupported_reason
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics
from tunesmith.scoring.samples import is_passable, row_scores
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter

Outputs = tuple[list[dict[str, Any]], list[dict[str, float]]]
"""The answers and the likelihoods of a model, see `run_model`."""


@dataclass(frozen=True, slots=True)
class TestRows:
    """The test rows, or those of a further held-out set, and how a model is asked about them.

    Attributes:
        recipe: the recipe of the run, or of the set.
        tokens: the token file of the split.
        examples: the rows.
        indices: their indices in the token file.
        task: the task with the model's template and tokenizer.
        prompts: the prompts of all rows, or of the first few if no metric scores answers.
    """

    recipe: Recipe
    tokens: Path
    examples: tuple[Example, ...]
    indices: tuple[int, ...]
    task: Task
    tokenizer: TokenizerAdapter
    prompts: Prompts

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        run: RunDir,
        examples: Sequence[Example],
        indices: Sequence[int],
        task: Task,
        tokenizer: TokenizerAdapter,
        *,
        unscored: int = UNSCORED_ANSWERS,
    ) -> "TestRows":
        """Make the prompts of some rows of a run or set; if no metric scores answers, those of the first `unscored`."""
        asked = examples if answer_metrics(recipe.evaluate.metrics) else examples[:unscored]
        prompts = build_prompts(asked, recipe, task, tokenizer, samples=recipe.evaluate.samples)
        return cls(recipe, run.tokens("test"), tuple(examples), tuple(indices), task, tokenizer, prompts)


FurtherRows = Sequence[tuple[TestRows, Path]]


def evaluation_conditions(recipe: Recipe) -> dict[str, str | None]:
    """Return the settings that affect the answers of both models and are not in the models' files."""
    quantization, tokens = quantization_of(recipe), tokens_to_add(recipe.model)
    return {
        "precision": compute_config(recipe).precision,
        "quantization": str(quantization) if quantization else None,
        "chat_markup": recipe.model.chat_markup,
        **({"added_tokens": " ".join(tokens)} if tokens else {}),
    }


def run_model(
    name: str,
    model: ModelFolder,
    test: TestRows,
    folder: Path,
    further: FurtherRows = (),
    *,
    as_base: bool = False,
) -> list[Outputs]:
    """Return a model's answers to the prompts, and the likelihoods of test rows: empty if no metric needs them.

    Args:
        name: the name of the model in progress and logs.
        folder: the folder for its answers.
        further: the rows of further held-out sets, each with the folder for its answers. Their outputs follow.
        as_base: load the model as training loaded its base: its own adapter merged, with the recipe's quantization and
            new tokens.
    """
    interrupt.check()
    recipe = test.recipe
    compute, group = compute_config(recipe), current_group()
    sharding = _choose_sharding(recipe, model, compute, group)
    loaded = open_to_ask(recipe, model, test.tokenizer, load_device(compute, sharding), as_base=as_base)
    if sharding != "none":
        loaded.requires_grad_(False)
        shard(loaded, compute, group, by_node=sharding == "node", offload=recipe.launch.offload)
    if as_base:  # scores of a model that sees later tokens would be meaningless
        require_causal_attention(loaded, TokenDataset(test.tokens), test.tokenizer.pad_id, compute)
    outputs = [_ask(name, model, loaded, rows, rows_folder) for rows, rows_folder in ((test, folder), *further)]
    del loaded
    free_memory()
    return outputs


def open_to_ask(
    recipe: Recipe, model: ModelFolder, tokenizer: TokenizerAdapter, compute: ComputeConfig, *, as_base: bool
) -> Any:
    """Load a model for evaluation; `as_base` as in `run_model`."""
    as_trained: dict[str, Any] = {}
    if as_base:
        as_trained = {"merged": True, "quantization": quantization_of(recipe), "new_rows": tokenizer.new_rows}
    return open_model(model, compute, attention=recipe.model.attention, **as_trained)


def _ask(name: str, model: ModelFolder, loaded: Any, test: TestRows, folder: Path) -> Outputs:
    """Return the answers and the likelihoods of a loaded model."""
    recipe, compute = test.recipe, compute_config(test.recipe)
    if answer_metrics(recipe.evaluate.metrics) and (warning := check_positions(test.prompts, max_positions(loaded))):
        log(f"warning: {warning}")
    key = digest_of([test.prompts.digest, model.digest(), evaluation_conditions(recipe)])
    answers: list[dict[str, Any]] = []
    if test.prompts.examples:
        answers, speed = generate_answers(name, loaded, test.prompts, test.task, folder, key=key)
        if speed and not current_group().is_distributed:
            save_generation_speed(speed_key(model.root.digest(), recipe), speed)
    likelihoods: list[dict[str, float]] = [{} for _ in test.examples]
    if likelihood_metrics(recipe.evaluate.metrics):
        tokens = TokenDataset(test.tokens)
        likelihoods = score_likelihoods(loaded, tokens, test.indices, compute, test.tokenizer.pad_id)
    return answers, likelihoods


def write_scores(folder: Path, examples: Sequence[Example], outputs: Outputs, scorer: Scorer) -> list[dict[str, Any]]:
    """Score a model's outputs of `run_model`, write `scores.jsonl` to a folder, and return its lines, one per row.

    If rows have several samples, a row has the mean of each metric over them, the values of all in `samples`, and
    pass@k. If one of them failed, the row failed.
    """
    answers, likelihoods = outputs
    lines: list[dict[str, Any]] = [
        {"id": example.id, "group": example.group, **likelihood}
        for example, likelihood in zip(examples, likelihoods, strict=True)
    ]
    by_id = {line["id"]: line for line in lines}
    for answer in answers:  # without metrics of answers, only a few rows have one
        if answer["error"] is not None:
            by_id[answer["id"]]["failed"] = answer["error"]
    for metric in scorer.names:
        values = scorer.score(metric, answers)
        passable = is_passable(metric, values) and metric not in scorer.lower_is_better
        samples: dict[str, list[float]] = {}
        for answer, value in zip(answers, values, strict=True):
            if value is not None:
                samples.setdefault(answer["id"], []).append(value)
        for row, own in samples.items():
            if len(own) > 1:
                by_id[row].setdefault("samples", {})[metric] = own
            if "failed" not in by_id[row]:
                by_id[row] |= row_scores(metric, own, passable=passable)
    write_jsonl(folder / "scores.jsonl", lines)
    return lines


def _choose_sharding(recipe: Recipe, model: ModelFolder, compute: ComputeConfig, group: ProcessGroup) -> Sharding:
    """Return "none" if the whole model fits on every rank, otherwise the recipe's sharding.

    Training may be sharded even if inference is not: it needs more memory, and a sharded model is slow at inference,
    because it gathers its parameters for every token.
    """
    if not group.is_distributed or recipe.launch.sharding == "none" or sharding_unsupported_reason(recipe):
        return "none"
    try:
        shapes = shapes_of(model.root.path)
    except RecipeError:
        return "none"
    free_memory()  # the stage before may have left memory of training
    if all(group.all_gather(shapes.has_encoder or fits_for_inference(recipe, shapes, memory_budget(compute, group)))):
        return "none"
    log("the whole model does not fit on every rank, so it is sharded and generates slowly")
    return "full" if recipe.launch.sharding == "auto" else recipe.launch.sharding
