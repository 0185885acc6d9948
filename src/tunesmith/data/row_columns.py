"""The columns of rows in their sources, for custom metrics that take `rows`."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.process_rows import read_recipe_rows
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import custom_metrics
from tunesmith.tasks.base import format_value

Columns = dict[str, Any]


def splits_with_columns(recipe: Recipe, folder: Path) -> list[str]:
    """Return the splits whose answers are scored by a custom metric that takes `rows`.

    Args:
        folder: the folder of the custom metrics' modules.

    Raises:
        RecipeError: a custom metric cannot be imported.
    """
    uses = {"valid": recipe.train.valid_metrics, "test": recipe.evaluate.metrics}
    return [split for split, names in uses.items() if any(m.takes_rows for m in custom_metrics(names, folder).values())]


def row_columns(recipe: Recipe, run: RunDir, split: str, numbers: Collection[int]) -> dict[int, Columns]:
    """Return {number of a row: its columns}: as `prepare` stored them, or else from the sources.

    `prepare` stores them if a metric takes `rows`. If the metric was added later, the sources are read again; a run
    whose sources have changed is refused before.

    Raises:
        DataError: the columns are not in the run, and the sources are gone.
    """
    if (stored := run.columns(split)).exists():
        return {line["row"]: line["columns"] for line in read_jsonl(stored) if line["row"] in numbers}
    try:
        return dict(source_columns(recipe, run.recipe_folder, numbers))
    except DataError as error:
        raise DataError(
            f"does not have the columns of its rows, and they cannot be read again: {error.where}: {error.message}",
            where=str(run),
            hint="put the sources back where the recipe names them, or leave out the metrics that take `rows`",
            code="no-columns",
        ) from error


def source_columns(recipe: Recipe, folder: Path, numbers: Collection[int]) -> Iterator[tuple[int, Columns]]:
    """Yield the number and the columns of some rows, with values as JSON has them.

    Raises:
        DataError: a source cannot be read, or has fewer rows.
    """
    missing = set(numbers)
    for row in read_recipe_rows(recipe, folder):
        if not missing:
            return
        if row.number in missing:
            missing.remove(row.number)
            yield row.number, {column: _to_json(value) for column, value in row.values.items()}
    if missing:
        raise DataError(f"has no row {min(missing)}", where="data.source", code="no-columns")


def _to_json(value: Any) -> Any:
    """Return a value as it is after it was stored as JSON: dates, decimals and the like become text."""
    if isinstance(value, dict):
        return {str(key): _to_json(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(child) for child in value]
    if isinstance(value, float):  # JSON has neither NaN, which is an empty cell, nor infinity
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(value)
    return value if isinstance(value, str | int | None) else format_value(value)
