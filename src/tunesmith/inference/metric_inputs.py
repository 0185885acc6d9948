"""What scores follow from beside model, rows and settings. Imports no torch: it is asked whether a stage is done."""

from collections.abc import Sequence
from typing import Any

from tunesmith.core.files import digest_file, digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.data.database import database_file
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import is_custom, source_files


def scoring_inputs(metrics: Sequence[str], recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the digests of what some metrics read: {own_metrics, database}, of each only where there is one.

    A metric of an installed package has no digest: its version is the environment's.

    Raises:
        DataError: there is no such database.
    """
    own = {name: _digest_of_own(name, run) for name in metrics if is_custom(name)}
    found: dict[str, Any] = {}
    if own:
        found["own_metrics"] = own
    if "execution" in metrics and recipe.evaluate.database is not None:
        file = database_file(recipe, run.recipe_folder)
        found["database"] = digest_file(file) if file else recipe.evaluate.database
    return found


def _digest_of_own(name: str, run: RunDir) -> str | None:
    """Return the digest of a metric's module, and of the modules beside it that it imports."""
    files = source_files(name, run.recipe_folder)
    if len(files) < 2:
        return digest_file(files[0]) if files else None
    return digest_of({file.relative_to(run.recipe_folder).as_posix(): digest_file(file) for file in files})
