"""The state of a run's stages: a finished stage counts if its inputs are still those that its manifest records."""

import importlib
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import read_json
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import STAGES, TRAIN, Stage
from tunesmith.recipe.changes import UNDO_HINT, changed_keys
from tunesmith.recipe.schema import Recipe
from tunesmith.train.inputs import require_same_inputs


def wanted_stages(recipe: Recipe, until: str | None = None) -> list[Stage]:
    """Return the stages that a recipe asks for, up to the stage named `until`.

    Raises:
        RecipeError: the recipe does not ask for the stage named `until`.
    """
    names = [stage.name for stage in STAGES]
    stages = STAGES if until is None else STAGES[: names.index(until) + 1]
    wanted = [stage for stage in stages if not stage.key or getattr(recipe, stage.key) is not None]
    if until is not None and wanted[-1] is not stages[-1]:
        key = stages[-1].key
        hint = f"set `{key}` in the recipe"
        raise RecipeError(f"the recipe does not ask for `{until}`", where=key, hint=hint, code="missing-key")
    return wanted


def stage_inputs(stage: Stage, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that the result of a stage depends on."""
    inputs: dict[str, Any] = importlib.import_module(f"{stage.package}.inputs").inputs(recipe, run)
    return inputs


def run_stage(stage: Stage, recipe: Recipe, run: RunDir) -> None:
    """Run a stage, which writes its own manifest."""
    getattr(importlib.import_module(f"{stage.package}.{stage.name}"), stage.name)(recipe, run)


def changed_inputs(stage: Stage, recipe: Recipe, run: RunDir) -> list[str] | None:
    """Return the keys of a finished stage's inputs that have changed since; None if it is not finished."""
    manifest = run.manifest(stage.name)
    if manifest is None:
        return None
    return sorted(changed_keys(manifest["inputs"], stage_inputs(stage, recipe, run), recipe))


def is_done(stage: Stage, recipe: Recipe, run: RunDir) -> bool:
    """Return whether a stage is finished and its inputs have not changed.

    Raises:
        RecipeError: the inputs of a finished `prepare`, or of a finished or interrupted `train`, have changed.
    """
    return _allowed_changes(stage, recipe, run) == []


def stage_states(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """Return `done`, `to do`, or `to do again` with the changed inputs, for each stage of the recipe.

    Raises:
        RecipeError: the inputs of a finished `prepare`, or of a finished or interrupted `train`, have changed.
    """
    states: dict[str, str] = {}
    for stage in wanted_stages(recipe):
        changes = _allowed_changes(stage, recipe, run)
        if changes is None:
            states[stage.name] = "to do"
        elif changes:
            states[stage.name] = f"to do again ({', '.join(changes)} changed)"
        else:
            repeats = any(state != "done" for state in states.values())
            states[stage.name] = "to do again" if repeats else "done"
    return states


def _allowed_changes(stage: Stage, recipe: Recipe, run: RunDir) -> list[str] | None:
    """Return the changed inputs of a stage; raise RecipeError if its result or checkpoint rules them out."""
    changes = changed_inputs(stage, recipe, run)
    if changes and stage.keeps_result:
        problem = f"`{stage.name}` finished with other inputs ({', '.join(changes)}), and its result is never replaced"
        raise RecipeError(problem, where=str(run), hint=UNDO_HINT, code="inputs-changed")
    if changes is None and stage is TRAIN:
        _refuse_other_checkpoint(recipe, run)
    return changes


def _refuse_other_checkpoint(recipe: Recipe, run: RunDir) -> None:
    """Raise RecipeError if the latest checkpoint of an interrupted training has other inputs."""
    for checkpoint in sorted(run.checkpoints.glob("step-*"), reverse=True):
        try:
            recorded = read_json(checkpoint / "state.json")["inputs"]
        except (OSError, DamagedFile, KeyError, TypeError):
            continue  # training itself reports damaged checkpoints
        require_same_inputs(recorded, stage_inputs(TRAIN, recipe, run), recipe, checkpoint)
        return
