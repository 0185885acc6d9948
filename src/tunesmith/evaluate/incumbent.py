"""Compare the tuned model with the incumbent: the version of the registry that its promotion would replace.

The incumbent answers the same rows through the prompt template of its own training, because a template that it never
saw would make it look worse than it is. The result is a verdict with the incumbent in the place of the base. It is kept
in the run, so that a repeated promotion does not ask again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.core.errors import DamagedFile, DataError, RecipeError, VerdictRefused
from tunesmith.core.files import MANIFEST, digest_of, read_json, seal_folder, write_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.data.identity import row_id
from tunesmith.data.process_rows import read_recipe_rows
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.compare import compare_models
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import Outputs, TestRows, evaluation_conditions, run_model, write_scores
from tunesmith.fetch.reference import ModelFolder, resolve, resolve_base
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.recorded import recorded_options
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.data_record import load_data
from tunesmith.recipe.schema import Data, DataBase, Recipe
from tunesmith.registry.store import Registry, Version
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn, RowProblem, Task
from tunesmith.tasks.chatml import load_tokenizer


@dataclass(frozen=True, slots=True)
class IncumbentOutputs:
    """The incumbent's outputs.

    Attributes:
        recipe: the run's recipe, with those metrics in which both models can be compared.
        outputs: None if the incumbent is the run's base, whose scores are stored already.
        digests: the digests of the prompts and of the incumbent, if they are not those of the base.
    """

    recipe: Recipe
    outputs: Outputs | None
    digests: Mapping[str, str]


def find_incumbent(recipe: Recipe, tuned: ModelFolder) -> Version | None:
    """Return the version that the recipe's alias points at.

    None if the recipe does not compare with it, if the alias is new, or if it points at the tuned model already.
    """
    target = recipe.promote
    if target is None or "incumbent" not in target.against:
        return None
    registry = Registry.default()
    number = registry.alias_target(target.model, target.alias)
    version = None if number is None else registry.resolve(f"{target.model}@{number}")
    return None if version is None or version.facts.get("model_digest") == tuned.digest() else version


def compare_with_incumbent(recipe: Recipe, run: RunDir, version: Version) -> Verdict:
    """Return the verdict with a version in the place of the base: the stored one, or that of its answers now.

    Raises:
        VerdictRefused: the version cannot answer the rows.
    """
    manifest = run.incumbent(str(version)) / MANIFEST
    if manifest.exists() and read_json(manifest)["inputs"] == _inputs(run, version):
        return read_verdict(manifest.parent / "verdict.json")
    if current_group().is_distributed:  # `promote` runs on rank 0 alone
        raise VerdictRefused(
            "became the version to replace after this evaluation",
            where=str(version),
            code="not-comparable",
            hint=f"compare and promote in one process: tunesmith promote {run}",
        )
    return judge_incumbent(recipe, run, version, ask_incumbent(recipe, run, version))


def ask_incumbent(recipe: Recipe, run: RunDir, version: Version) -> IncumbentOutputs:
    """Let a version answer the run's test rows. All ranks call this.

    Raises:
        VerdictRefused: the version cannot answer the rows.
    """
    try:
        return _ask(recipe, run, version, resolve(str(version)))
    except (RecipeError, DataError, DamagedFile) as error:
        reason = f"{error.where}: {error.message}" if error.where else error.message
        raise VerdictRefused(
            f"cannot be compared with the tuned model: {reason}",
            where=str(version),
            code="not-comparable",
            hint=error.hint,
        ) from error


def judge_incumbent(recipe: Recipe, run: RunDir, version: Version, asked: IncumbentOutputs) -> Verdict:
    """Score the incumbent's outputs, compare the evaluated tuned model with it, and store the verdict in the run."""
    folder = run.incumbent(str(version))
    folder.mkdir(parents=True, exist_ok=True)
    tuned, own = list(read_jsonl(run.evaluation("tuned") / "scores.jsonl")), read_verdict(run.verdict)
    scorer = Scorer(answer_metrics(asked.recipe.evaluate.metrics), recipe, run, stage="evaluate")
    if asked.outputs is None:
        scores, health = list(read_jsonl(run.evaluation("base") / "scores.jsonl")), own.health["base"]
    else:
        examples, _ = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
        scores, health = write_scores(folder, examples, asked.outputs, scorer), response_stats(asked.outputs[0])
    verdict = compare_models(
        asked.recipe,
        scores,
        tuned,
        groups=[line["group"] for line in tuned],
        min_gain=0.0,
        lower_is_better=scorer.lower_is_better,
    )
    left_out = [metric for metric in likelihood_metrics(recipe.evaluate.metrics) if metric not in verdict.metrics]
    reasons = [f"{metric} was not compared: the models read different tokens" for metric in left_out]
    verdict = replace(
        verdict,
        reasons=(*verdict.reasons, *reasons),
        health={"base": health, "tuned": own.health["tuned"]},
        digests={**own.digests, **asked.digests},
        conditions=own.conditions,
    )
    write_json(folder / "verdict.json", verdict.to_json())
    seal_folder(folder, inputs=_inputs(run, version))
    return verdict


def _inputs(run: RunDir, version: Version) -> dict[str, str]:
    """Return everything that the verdict depends on."""
    return {"evaluate": digest_of((run.manifest("evaluate") or {}).get("files")), "version": version.digest}


def _ask(recipe: Recipe, run: RunDir, version: Version, model: ModelFolder) -> IncumbentOutputs:
    base = resolve_base(run, recipe.model.base)
    conditions = evaluation_conditions(recipe)
    if model.digest() == base.digest() and not (conditions["quantization"] or conditions["chat_markup"]):
        return IncumbentOutputs(recipe, None, {})
    tokenizer, base_tokenizer = load_tokenizer(model), load_tokenizer(base, recipe.model.chat_markup)
    task = task_for(recipe.data, base_tokenizer)
    examples, indices = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
    data, options = _prompt_data(recipe, model), recorded_options(model)
    own_task = task_for(data, tokenizer)
    reads_same_tokens = _template(data) == _template(recipe.data) and (
        (model.root.tokenizer_digest(), model.chat_markup)
        == (base.root.tokenizer_digest(), recipe.model.chat_markup or base.chat_markup)
    )
    if not reads_same_tokens:
        recipe = _without_likelihoods(recipe)
    if _template(data) != _template(recipe.data):
        if "text" in (data.task, recipe.data.task):
            raise RecipeError("it continues other documents than the tuned model does", code="not-comparable")
        examples = [
            replace(example, turns=_turns(own_task, options.renamed(values), task.reference(example.turns), example))
            for example, values in zip(examples, _row_values(recipe, run, task, examples), strict=True)
        ]
    test = TestRows.of(recipe, examples, indices, own_task, tokenizer)
    outputs = run_model("incumbent", model, recipe, run, test, run.incumbent(str(version)))
    return IncumbentOutputs(recipe, outputs, {"questions": test.prompts.digest, "base": model.digest()})


def _prompt_data(recipe: Recipe, model: ModelFolder) -> Data:
    """Return the `data` section of the model's training, or of this recipe for a model that was not tuned."""
    stored = model.card.get("data")
    return load_data(stored) if isinstance(stored, dict) else recipe.data


def _template(data: Data) -> dict[str, Any]:
    """Return the settings of a `data` section that decide which prompt a row becomes."""
    return data.model_dump(exclude={*DataBase.model_fields, "response", "references", "train_on", "max_target_tokens"})


def _without_likelihoods(recipe: Recipe) -> Recipe:
    """Return the recipe with the metrics of answers only, which do not depend on the tokens.

    Raises:
        RecipeError: the primary metric is not one of them.
    """
    settings = recipe.evaluate
    likelihoods = likelihood_metrics(settings.metrics)
    if settings.primary in likelihoods:
        raise RecipeError(
            f"{settings.primary} compares only models with the same tokenizer and prompt template",
            code="not-comparable",
            hint="let a metric of answers be evaluate.primary",
        )
    changes = {
        "metrics": tuple(name for name in settings.metrics if name not in likelihoods),
        "guards": tuple(guard for guard in settings.guards if guard.metric not in likelihoods),
    }
    return recipe.model_copy(update={"evaluate": settings.model_copy(update=changes)})


def _row_values(recipe: Recipe, run: RunDir, task: Task, examples: Sequence[Example]) -> list[Mapping[str, Any]]:
    """Return the columns of the examples' rows, read from the sources again.

    Raises:
        DataError: the sources are gone or have changed since `prepare`.
    """
    wanted = {example.row: example.id for example in examples}
    values = {
        row.number: row.values
        for row in read_recipe_rows(recipe, run.recipe_folder)
        if row.number in wanted and row_id(recipe.data, row.values, task.parse(row.values)) == wanted[row.number]
    }
    if len(values) < len(wanted):
        raise DataError(
            "its prompt has another template, and the rows to fill it from have changed since `prepare`",
            where="data.source",
            code="not-comparable",
        )
    return [values[example.row] for example in examples]


def _turns(task: Task, values: Mapping[str, Any], reference: str, example: Example) -> tuple[Turn, ...]:
    """Return a row's turns in the incumbent's template, with the reference of this run.

    Raises:
        DataError: the row does not fill the template.
    """
    try:
        return (*task.prompt_turns(values), Turn("assistant", reference, trained=True))
    except MissingColumn as missing:
        problem = f"its prompt needs the column `{missing.column}`"
    except RowProblem as error:
        problem = str(error)
    raise DataError(problem, where=f"row {example.row}", code="not-comparable")
