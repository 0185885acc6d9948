"""Let a model that a run did not train answer the run's test rows: the incumbent, or another one to compare with.

It answers through the prompt template of its own training, because a template that it never saw would make it look
worse than it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.data.identity import row_id
from tunesmith.data.process_rows import read_recipe_rows
from tunesmith.evaluate.model_scores import Outputs, TestRows, evaluation_conditions, run_model
from tunesmith.fetch.reference import ModelFolder, resolve_base
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.recorded import recorded_options
from tunesmith.recipe.data_record import load_data
from tunesmith.recipe.schema import Data, DataBase, Recipe
from tunesmith.scoring.metrics import likelihood_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn, RowProblem, Task
from tunesmith.tasks.chatml import load_tokenizer


@dataclass(frozen=True, slots=True)
class OtherOutputs:
    """The outputs of the other model.

    Attributes:
        recipe: the run's recipe, with those metrics in which both models can be compared.
        digests: the digests of the prompts and of the model.
    """

    recipe: Recipe
    outputs: Outputs
    digests: Mapping[str, str]


def is_base(model: ModelFolder, recipe: Recipe, run: RunDir) -> bool:
    """Whether a model would give the answers of the run's base, which are stored already."""
    conditions = evaluation_conditions(recipe)
    if conditions["quantization"] or conditions["chat_markup"]:
        return False
    return model.digest() == resolve_base(run, recipe.model.base).digest()


def ask_other_model(name: str, model: ModelFolder, recipe: Recipe, run: RunDir, folder: Path) -> OtherOutputs:
    """Let a model that the run did not train answer the run's test rows. All ranks call this.

    Args:
        name: the name of the model in progress and logs.
        folder: the folder for its answers.

    Raises:
        RecipeError: the model cannot be compared with those of the run.
        DataError: the rows do not fill the model's prompt template.
    """
    base = resolve_base(run, recipe.model.base)
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
        recipe = without_likelihoods(recipe)
    if _template(data) != _template(recipe.data):
        if "text" in (data.task, recipe.data.task):
            raise RecipeError("it continues other documents than the models of the run do", code="not-comparable")
        examples = [
            replace(example, turns=_turns(own_task, options.renamed(values), task.reference(example.turns), example))
            for example, values in zip(examples, _row_values(recipe, run, task, examples), strict=True)
        ]
    test = TestRows.of(recipe, run, examples, indices, own_task, tokenizer)
    [outputs] = run_model(name, model, test, folder)
    return OtherOutputs(recipe, outputs, {"questions": test.prompts.digest, "base": model.digest()})


def _prompt_data(recipe: Recipe, model: ModelFolder) -> Data:
    """Return the `data` section of the model's training, or of this recipe for a model that was not tuned."""
    stored = model.card.get("data")
    return load_data(stored) if isinstance(stored, dict) else recipe.data


def _template(data: Data) -> dict[str, Any]:
    """Return the settings of a `data` section that decide which prompt a row becomes."""
    return data.model_dump(exclude={*DataBase.model_fields, "response", "references", "train_on", "max_target_tokens"})


def without_likelihoods(recipe: Recipe) -> Recipe:
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
        if row.number in wanted and _id_of(row.values, recipe.data, task) == wanted[row.number]
    }
    if len(values) < len(wanted):
        raise DataError(
            "its prompt has another template, and the rows to fill it from have changed since `prepare`",
            where="data.source",
            code="not-comparable",
        )
    return [values[example.row] for example in examples]


def _id_of(values: Mapping[str, Any], data: Data, task: Task) -> str | None:
    """Return the id of a source row; None if the row cannot be used."""
    try:
        return row_id(data, values, task.parse(values))
    except RowProblem:
        return None


def _turns(task: Task, values: Mapping[str, Any], reference: str, example: Example) -> tuple[Turn, ...]:
    """Return a row's turns in the other model's template, with the reference of this run.

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
