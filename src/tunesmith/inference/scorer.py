"""Score answers by metrics, one value per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.rundir import RunDir
from tunesmith.data.recipe_files import GENERATED_SHOP, database_file
from tunesmith.data.row_columns import Columns, row_columns
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import custom_metrics
from tunesmith.scoring.metrics import expand_metrics, is_lower_better, score


class Scorer:
    """Built-in and custom metrics, loaded once.

    Args:
        metrics: names of metrics on answers; `names` has the members of groups instead of the groups.
        stage: the stage that scores, `train` the valid rows and `evaluate` the test rows; a generated database is
            written to its folder.

    Raises:
        RecipeError: a metric is unknown or cannot be loaded.
        DataError: `execution` is one of the metrics, and its database does not exist.
    """

    def __init__(self, metrics: Sequence[str], recipe: Recipe, run: RunDir, *, stage: str) -> None:
        self.names = expand_metrics(metrics)
        self._own = custom_metrics(self.names, run.recipe_folder)
        self._recipe, self._run, self._split = recipe, run, "valid" if stage == "train" else "test"
        self._columns: dict[int, Columns] = {}
        self._database = _database(recipe, run, stage) if "execution" in self.names else None

    @property
    def lower_is_better(self) -> list[str]:
        """The names of those metrics of which a lower value is better."""
        own = {name: not metric.higher_is_better for name, metric in self._own.items()}
        return [name for name in self.names if own.get(name, is_lower_better(name))]

    def score(self, name: str, answers: Sequence[dict[str, Any]]) -> list[float | None]:
        """Return one value per answer; None for an answer that failed, because a missing answer is not a wrong one.

        Raises:
            RecipeError: a custom metric fails.
            DataError: a custom metric takes the columns of rows, and they are gone.
        """
        complete = [line for line in answers if line["error"] is None]
        predictions, references = [line["prediction"] for line in complete], [line["reference"] for line in complete]
        if not complete:
            return [None] * len(answers)
        if name in self._own:
            rows = self._columns_of(complete) if self._own[name].takes_rows else None
            values = self._own[name](predictions, references, rows)
        else:
            values = score(predictions, references, [name], database=self._database)[name]
        remaining = iter(values)
        return [next(remaining) if line["error"] is None else None for line in answers]

    def _columns_of(self, answers: Sequence[dict[str, Any]]) -> list[Columns]:
        """Return the source columns of each answer's row."""
        numbers = {line["row"] for line in answers}
        if not numbers <= self._columns.keys():
            self._columns |= row_columns(self._recipe, self._run, self._split, numbers)
        return [self._columns[line["row"]] for line in answers]


def _database(recipe: Recipe, run: RunDir, stage: str) -> Path | None:
    """Return the SQLite file for the metric `execution`, after generating it if the recipe asks for that."""
    if recipe.evaluate.database != GENERATED_SHOP:
        return database_file(recipe, run.recipe_folder)
    from tunesmith.demo.shop import write_database

    path = run.stage(stage) / "shop.sqlite"
    if not path.exists():
        write_database(path)
    return path
