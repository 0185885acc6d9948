"""What `train` follows from. Apart from the stage, so that asking whether it is done imports no torch."""

from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve_base
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.recipe.changes import UNDO_HINT, changed_keys
from tunesmith.recipe.schedule import DECODING_KEYS, TRAJECTORY_NEUTRAL_KEYS
from tunesmith.recipe.schema import Recipe


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides what training gives."""
    settings = recipe.train.model_dump(mode="json", exclude=set(TRAJECTORY_NEUTRAL_KEYS))
    answered: dict[str, Any] = {}
    if recipe.train.valid_metrics:
        answered = {"decoding": recipe.decoding.model_dump(mode="json", include=set(DECODING_KEYS))}
        answered |= scoring_inputs(recipe.train.valid_metrics, recipe, run)
    return {
        "model": recipe.model.model_dump(mode="json"),
        "base": resolve_base(run, recipe.model.base).digest(),
        "tuning": recipe.tuning.model_dump(mode="json"),
        "train": settings,
        **answered,
        "seed": recipe.seed,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
    }


def require_same_inputs(
    recorded: dict[str, Any] | str, wanted: dict[str, Any], recipe: Recipe, checkpoint: Path
) -> None:
    """Raise RecipeError if a checkpoint was made from other inputs than training would have now.

    Args:
        recorded: the checkpoint's inputs, or their digest, which is all that earlier versions wrote.
        wanted: the recipe's.
        recipe: whose.
        checkpoint: for the message.
    """
    told = "was made with other data, settings or base model"
    if isinstance(recorded, str):
        same = recorded == digest_of(wanted)
    else:
        changed = sorted(changed_keys(recorded, wanted, recipe))
        same, told = not changed, f"{told} ({', '.join(changed)})"
    if not same:
        raise RecipeError(told, where=str(checkpoint), hint=UNDO_HINT)
