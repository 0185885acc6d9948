"""The inputs of the stage `train`. Imports no torch, so that checking whether the stage is done is fast."""

from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve_base
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.recipe.changes import UNDO_HINT, changed_keys
from tunesmith.recipe.schedule import DECODING_KEYS, RESULT_NEUTRAL_KEYS
from tunesmith.recipe.schema import Recipe


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that determines the result of training."""
    settings = recipe.train.model_dump(mode="json", exclude=set(RESULT_NEUTRAL_KEYS))
    metric_inputs: dict[str, Any] = {}
    if recipe.train.valid_metrics:
        metric_inputs = {"decoding": recipe.decoding.model_dump(mode="json", include=set(DECODING_KEYS))}
        metric_inputs |= scoring_inputs(recipe.train.valid_metrics, recipe, run)
    return {
        "model": recipe.model.model_dump(mode="json"),
        "base": resolve_base(run, recipe.model.base).digest(),
        "tuning": recipe.tuning.model_dump(mode="json"),
        "train": settings,
        **metric_inputs,
        "seed": recipe.seed,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
    }


def require_same_inputs(
    recorded: dict[str, Any] | str, expected: dict[str, Any], recipe: Recipe, checkpoint: Path
) -> None:
    """Raise RecipeError if a checkpoint was made from other inputs than those of the recipe now.

    Args:
        recorded: the checkpoint's inputs, or only their digest in checkpoints of earlier versions.
        expected: the inputs of the recipe.
        checkpoint: the folder that the error names.
    """
    message = "was made with other data, settings or base model"
    if isinstance(recorded, str):
        same = recorded == digest_of(expected)
    else:
        changed = sorted(changed_keys(recorded, expected, recipe))
        same, message = not changed, f"{message} ({', '.join(changed)})"
    if not same:
        raise RecipeError(message, where=str(checkpoint), hint=UNDO_HINT, code="inputs-changed")
