"""What `train` follows from. Apart from the stage, so that asking whether it is done imports no torch."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.plan import NEVER_DECIDES
from tunesmith.recipe.schema import Recipe


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides what training gives."""
    settings = recipe.train.model_dump(mode="json", exclude=set(NEVER_DECIDES))
    return {
        "model": recipe.model.model_dump(mode="json"),
        "base": resolve(recipe.model.base, relative_to=run.origin).digest(),
        "tuning": recipe.tuning.model_dump(mode="json"),
        "train": settings,
        "seed": recipe.seed,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
    }
