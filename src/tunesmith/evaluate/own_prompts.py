"""How a model that a run did not train is asked about the run's test rows. Imports no torch, so `plan` can check it.

It answers through the prompt template that it was trained with, because a template that it never saw would make it look
worse than it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Example, Turn
from tunesmith.data.identity import row_id
from tunesmith.data.process_rows import read_recipe_rows
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.inference.recorded import recorded_options
from tunesmith.recipe.schema import Data, DataBase, Recipe
from tunesmith.recipe.tuning import Quantization
from tunesmith.scoring.metrics import likelihood_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn, RowProblem, Task
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.recorded_data import recorded_data
from tunesmith.tasks.tokenizer import TokenizerAdapter


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """The test rows as another model is asked about them.

    Attributes:
        recipe: the run's recipe, with those metrics in which the model can be compared.
        examples: the rows, with the prompts of the model's template and the references of the run.
        task: the task with the model's template and tokenizer.
    """

    recipe: Recipe
    examples: tuple[Example, ...]
    task: Task
    tokenizer: TokenizerAdapter


def own_prompts(
    model: ModelFolder, base: ModelFolder, recipe: Recipe, examples: Sequence[Example], folder: Path
) -> OwnPrompts:
    """Return test rows of a run as another model is asked about them.

    Args:
        base: the base of the run.
        examples: the rows with the prompts of the run.
        folder: the folder of the recipe's sources, which are read again if the templates differ.

    Raises:
        RecipeError: the model cannot be compared with those of the run.
        DataError: the rows do not fill the model's template, or have changed since `prepare`.
    """
    tokenizer, base_tokenizer = load_tokenizer(model), load_tokenizer(base, recipe.model)
    data = recorded_data(model) or recipe.data  # a model that was not tuned has no template
    task, same_template = task_for(data, tokenizer), _template(data) == _template(recipe.data)
    if not same_template or tokenizer.digest != base_tokenizer.digest:
        recipe = without_likelihoods(recipe)
    if same_template:
        return OwnPrompts(recipe, tuple(examples), task, tokenizer)
    if "text" in (data.task, recipe.data.task):
        raise RecipeError("it continues other documents than the models of the run do", code="not-comparable")
    run_task, options = task_for(recipe.data, base_tokenizer), recorded_options(model)
    rows = zip(examples, _row_values(recipe, folder, run_task, examples), strict=True)
    reworded = (
        replace(example, turns=_turns(task, options.renamed(values), run_task.reference(example.turns), example))
        for example, values in rows
    )
    return OwnPrompts(recipe, tuple(reworded), task, tokenizer)


def changes_base(recipe: Recipe) -> bool:
    """Whether the base is evaluated with other weights or another template than its own."""
    is_quantized = isinstance(recipe.tuning, Quantization)
    return is_quantized or recipe.model.chat_markup is not None or bool(recipe.model.add_tokens)


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


def _template(data: Data) -> dict[str, Any]:
    """Return the settings of a `data` section that decide which prompt a row becomes."""
    return data.model_dump(exclude={*DataBase.model_fields, "response", "references", "train_on", "max_target_tokens"})


def _row_values(recipe: Recipe, folder: Path, task: Task, examples: Sequence[Example]) -> list[Mapping[str, Any]]:
    """Return the columns of the examples' rows, read from the sources again.

    Raises:
        DataError: the sources are gone or have changed since `prepare`.
    """
    wanted = {example.row: example.id for example in examples}
    values: dict[int, Mapping[str, Any]] = {}
    for row in read_recipe_rows(recipe, folder):
        if row.number in wanted and _id_of(row.values, recipe.data, task) == wanted[row.number]:
            values[row.number] = row.values
            if len(values) == len(wanted):
                return [values[example.row] for example in examples]
    raise DataError(
        "its prompt has another template, and the rows to fill it from have changed since `prepare`",
        where="data.source",
        code="not-comparable",
    )


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
