"""The inputs of the stage `replicate`. Imports no torch, so that checking whether the stage is done is fast."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.schema import Recipe
from tunesmith.train.inputs import inputs as train_inputs


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that determines the models of the further seeds."""
    return {"seeds": list(recipe.further_seeds), "train": digest_of(train_inputs(recipe, run))}
