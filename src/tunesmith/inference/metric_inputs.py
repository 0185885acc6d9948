"""Digest the files that metrics read, to notice changes of a finished stage's inputs.

This imports no torch, because every command checks which stages are done.
"""

from collections.abc import Sequence
from typing import Any

from tunesmith.core.files import digest_file, digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.data.recipe_files import database_file
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import is_custom, source_files


def scoring_inputs(metrics: Sequence[str], recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the digests of custom metrics and of the database: {own_metrics, database}, each only if used.

    A custom metric in an installed package has the digest None: the recorded environment has its version.

    Raises:
        DataError: there is no such database.
    """
    custom = {name: _custom_metric_digest(name, run) for name in metrics if is_custom(name)}
    inputs: dict[str, Any] = {"own_metrics": custom} if custom else {}
    if "execution" in metrics and recipe.evaluate.database is not None:
        file = database_file(recipe, run.recipe_folder)
        inputs["database"] = digest_file(file) if file else recipe.evaluate.database
    return inputs


def _custom_metric_digest(name: str, run: RunDir) -> str | None:
    """Return the digest of a metric's module and of the modules in its folder that it imports."""
    files = source_files(name, run.recipe_folder)
    if len(files) < 2:
        return digest_file(files[0]) if files else None
    return digest_of({file.relative_to(run.recipe_folder).as_posix(): digest_file(file) for file in files})
