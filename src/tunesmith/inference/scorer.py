"""Answers -> scores, one a row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.rundir import RunDir
from tunesmith.data.database import GENERATED_SHOP, database_file
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import custom_metrics
from tunesmith.scoring.metrics import expand_metrics, is_lower_better, score


class Scorer:
    """Metrics by name, found once: built-in ones, groups of them, and functions of the user's own.

    Args:
        metrics: what is computed from answers; groups are expanded in `names`.
        stage: the stage that scores, in whose folder a database is generated where the recipe asks for one.

    Raises:
        RecipeError: a metric is unknown or cannot be had.
        DataError: `execution` is among them, and its database is not there.
    """

    def __init__(self, metrics: Sequence[str], recipe: Recipe, run: RunDir, *, stage: str) -> None:
        self.names = expand_metrics(metrics)
        self._own = custom_metrics(self.names, run.recipe_folder)
        self._database = _database(recipe, run, stage) if "execution" in self.names else None

    @property
    def lower_is_better(self) -> list[str]:
        """The names of those metrics of which a lower value is better."""
        return [name for name in self.names if self._is_lower_better(name)]

    def _is_lower_better(self, name: str) -> bool:
        return not self._own[name].higher_is_better if name in self._own else is_lower_better(name)

    def score(self, name: str, answers: Sequence[dict[str, Any]]) -> list[float | None]:
        """Return one value a row of `answers`, None for an answer that failed: it is no answer, not a wrong one.

        Raises:
            RecipeError: a metric of the user's own fails.
        """
        given = [line for line in answers if line["error"] is None]
        predictions, references = [line["prediction"] for line in given], [line["reference"] for line in given]
        if not given:
            return [None] * len(answers)
        if name in self._own:
            values = self._own[name](predictions, references)
        else:
            values = score(predictions, references, [name], database=self._database)[name]
        rest = iter(values)
        return [next(rest) if line["error"] is None else None for line in answers]


def _database(recipe: Recipe, run: RunDir, stage: str) -> Path | None:
    """Return the SQLite file that `execution` runs queries on, making the generated one if need be."""
    if recipe.evaluate.database != GENERATED_SHOP:
        return database_file(recipe, run.recipe_folder)
    from tunesmith.demo.shop import write_database

    path = run.stage(stage) / "shop.sqlite"
    if not path.exists():
        write_database(path)
    return path
