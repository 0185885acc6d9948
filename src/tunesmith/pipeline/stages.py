"""The stages of a run: the inputs of each, and whether it is done, refused or to be done again.

prepare -> train -> evaluate -> (report) -> promote
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import read_json
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.changes import UNDO_HINT, changed_keys
from tunesmith.recipe.schema import Recipe
from tunesmith.train.inputs import require_same_inputs


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: the module of its function, imported only when it has to run, and of its `inputs`, which is light.

    `by_all` says that all processes of a run work at it; other stages are the first one's alone. The result of a
    `kept` stage is never replaced: if its inputs have changed, the run is refused.
    """

    name: str
    module: str
    asked: str
    by_all: bool = False
    kept: bool = False

    def inputs(self, recipe: Recipe, run: RunDir) -> dict[str, Any]:
        """Return what the stage's result follows from."""
        found: Callable[[Recipe, RunDir], dict[str, Any]] = importlib.import_module(self.asked).inputs
        return found(recipe, run)

    def work(self, recipe: Recipe, run: RunDir) -> dict[str, Any]:
        """Run the stage and return its manifest."""
        found: Callable[[Recipe, RunDir], dict[str, Any]] = getattr(importlib.import_module(self.module), self.name)
        return found(recipe, run)

    def changes(self, recipe: Recipe, run: RunDir) -> list[str] | None:
        """Return the inputs of a finished stage that have changed since, by key; None if it is not finished."""
        manifest = run.manifest(self.name)
        if manifest is None:
            return None
        return sorted(changed_keys(manifest["inputs"], self.inputs(recipe, run), recipe))


PREPARE, TRAIN, EVALUATE, PROMOTE = STAGES = (
    Stage("prepare", "tunesmith.data.prepare", "tunesmith.data.inputs", kept=True),
    Stage("train", "tunesmith.train.train", "tunesmith.train.inputs", by_all=True, kept=True),
    Stage("evaluate", "tunesmith.evaluate.evaluate", "tunesmith.evaluate.inputs", by_all=True),
    Stage("promote", "tunesmith.promote.promote", "tunesmith.promote.promote"),
)


def wanted_stages(recipe: Recipe, until: str | None = None) -> list[Stage]:
    """Return the stages that a recipe asks for, up to one."""
    names = [stage.name for stage in STAGES]
    wanted = STAGES if until is None else STAGES[: names.index(until) + 1]
    return [stage for stage in wanted if stage.name != "promote" or recipe.promote is not None]


def is_done(stage: Stage, recipe: Recipe, run: RunDir) -> bool:
    """Return whether a stage is finished and its inputs are the same as then.

    Raises:
        RecipeError: its rows were prepared, or its training finished or began, with other inputs.
    """
    return _accepted_changes(stage, recipe, run) == []


def work_left(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """Return for each stage of the recipe `done`, `to do`, or `to do again`, with the inputs that have changed.

    Raises:
        RecipeError: its rows were prepared, or its training finished or began, with other inputs.
    """
    left: dict[str, str] = {}
    for stage in wanted_stages(recipe):
        changes = _accepted_changes(stage, recipe, run)
        redone = any(state != "done" for state in left.values())
        if changes is None:
            left[stage.name] = "to do"
        elif changes:
            left[stage.name] = f"to do again ({', '.join(changes)} changed)"
        else:
            left[stage.name] = "to do again" if redone else "done"
    return left


def _accepted_changes(stage: Stage, recipe: Recipe, run: RunDir) -> list[str] | None:
    """Return the changes of a stage; raise RecipeError if there are any and its result, or its beginning, is kept."""
    changes = stage.changes(recipe, run)
    if changes and stage.kept:
        raise RecipeError(
            f"{stage.name} was done with other inputs ({', '.join(changes)}); it is kept as it is",
            where=str(run),
            hint=UNDO_HINT,
        )
    if changes is None and stage is TRAIN:
        _refuse_other_start(recipe, run)
    return changes


def _refuse_other_start(recipe: Recipe, run: RunDir) -> None:
    """Raise RecipeError if an interrupted training began from other data, settings or another base."""
    for checkpoint in sorted(run.checkpoints.glob("step-*"), reverse=True):
        try:
            began_from = read_json(checkpoint / "state.json")["inputs"]
        except (OSError, DamagedFile, KeyError, TypeError):
            continue  # training itself reports damaged checkpoints
        require_same_inputs(began_from, TRAIN.inputs(recipe, run), recipe, checkpoint)
        return
