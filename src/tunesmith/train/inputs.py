"""What `train` follows from. Apart from the stage, so that asking whether it is done imports no torch."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.schema import Recipe

# How rows are cut into forward passes, and what is kept: none of it changes what is learned.
_NEVER_DECIDE = {"micro_batch", "micro_batch_tokens", "packing", "activation_checkpointing", "keep_checkpoints"}


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides what training gives."""
    settings = recipe.train.model_dump(mode="json", exclude=_NEVER_DECIDE)
    return {
        "model": recipe.model.model_dump(mode="json"),
        "base": resolve(recipe.model.base, relative_to=run.origin).digest(),
        "tuning": recipe.tuning.model_dump(mode="json"),
        "train": settings,
        "seed": recipe.seed,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
    }
