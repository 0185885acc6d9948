"""Train with each further seed of `replicates`, one after the other, on the rows that the run has prepared.

A seed decides the order of the rows, the initial adapter and the dropout. The split is that of the run, because all
models must answer the same test rows. Each seed has its own folder, so that a finished one is never trained again, and
an interrupted one resumes.
"""

import time
from functools import partial
from typing import Any

from tunesmith.core.files import seal_folder
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.process_group import current_group
from tunesmith.model.memory import free_memory
from tunesmith.recipe.schema import Recipe
from tunesmith.replicate.inputs import inputs
from tunesmith.train.inputs import inputs as train_inputs
from tunesmith.train.inputs import require_same_inputs
from tunesmith.train.train import train


def replicate(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Train the models of the recipe's further seeds; return the manifest. Ranks other than 0 return {}.

    Raises:
        TunesmithError: as `train`.
        RecipeError: a finished seed was trained with other settings.
    """
    began = time.monotonic()
    stage_inputs, group = inputs(recipe, run), current_group()
    group.require_equal(stage_inputs)
    for number, seed in enumerate(recipe.further_seeds, 2):
        own, folder = recipe.model_copy(update={"seed": seed, "replicates": None}), run.replicate(seed)
        name = f"seed {seed} ({number} of {recipe.replicates})"
        if group.run_on_rank0(partial(_is_trained, own, folder)):
            log(f"{name}: already trained")
            continue
        log(f"{name}: starts")
        free_memory()  # of the model before, which `train` of this run may have left in this process
        train(own, folder)
    if not group.is_rank0:
        return {}
    seconds = round(time.monotonic() - began, 3)
    return seal_folder(run.stage("replicate"), stage="replicate", inputs=stage_inputs, seconds=seconds)


def _is_trained(recipe: Recipe, folder: RunDir) -> bool:
    """Return whether a seed is trained; raise RecipeError if it was trained from other inputs."""
    manifest = folder.manifest("train")
    if manifest is not None:
        require_same_inputs(manifest["inputs"], train_inputs(recipe, folder), recipe, folder.stage("train"))
    return manifest is not None
