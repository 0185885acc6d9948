"""What scores follow from beside model, rows and settings. Imports no torch: it is asked whether a stage is done."""

from collections.abc import Sequence
from typing import Any

from tunesmith.core.files import digest_file
from tunesmith.core.rundir import RunDir
from tunesmith.data.database import database_file
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.own import is_own, source_file


def scoring_inputs(metrics: Sequence[str], recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the digests of what some metrics read: {own_metrics, database}, of each only where there is one.

    A metric of an installed package has no digest: its version is the environment's.

    Raises:
        DataError: there is no such database.
    """
    own = {name: source_file(name, run.origin) for name in metrics if is_own(name)}
    found: dict[str, Any] = {}
    if own:
        found["own_metrics"] = {name: file and digest_file(file) for name, file in own.items()}
    if "execution" in metrics and recipe.evaluate.database is not None:
        file = database_file(recipe, run.origin)
        found["database"] = digest_file(file) if file else recipe.evaluate.database
    return found
