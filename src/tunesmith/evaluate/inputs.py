"""What the verdict follows from. Apart from the stage, so that asking whether it is done imports no torch."""

from typing import Any

from tunesmith.core.files import digest_file, digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.own import is_own, source_file


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides the verdict."""
    database = recipe.evaluate.database
    own = {name: source_file(name, run.origin) for name in recipe.evaluate.metrics if is_own(name)}
    return {
        **({"own_metrics": {name: file and digest_file(file) for name, file in own.items()}} if own else {}),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "min_gain": recipe.promote.min_gain if recipe.promote else 0.0,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
        "train": digest_of((run.manifest("train") or {}).get("files")),
        "database": digest_file(run.origin / database) if database and ":" not in database else database,
    }
