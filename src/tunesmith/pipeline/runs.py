"""Which folder a run has, and what it starts from.

A run is identified by the settings that decide training and by the path of its recipe's folder, relative to the folder
that holds `runs/`. How it is evaluated, promoted, launched and tracked may change later.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json, write_text
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import PREPARE, TRAIN
from tunesmith.data.sources import sources_available
from tunesmith.pipeline.stage_state import changed_inputs
from tunesmith.recipe.changes import UNDO_HINT, changed_keys
from tunesmith.recipe.load import dump_recipe, load_recipe
from tunesmith.recipe.schedule import DECODING_KEYS, TRAJECTORY_NEUTRAL_KEYS
from tunesmith.recipe.schema import Recipe

_MOST_NAMED = 4
_HINT_FOLDER = "leave the change out to continue this run, or run the recipe's file with it to start another one"


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A recipe, loaded once for all that a process does with it, and its run.

    `file`, the recipe's or the folder of a run, and `overrides` are what the user gave. `is_default` says that the
    run's folder follows from the recipe.
    """

    recipe: Recipe
    run: RunDir
    file: Path
    overrides: tuple[str, ...]
    is_default: bool

    def write_origin(self) -> None:
        """Write what the run starts from: the recipe as typed and resolved, and its folder. Call after all checks."""
        run = self.run
        if self.file.is_dir():
            typed = run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else ""
        else:
            typed = self.file.read_text(encoding="utf-8-sig")
            known = read_json(run.environment) if run.environment.exists() else {}
            origin = {
                **known,
                "recipe_folder": os.path.relpath(recipe_folder(self.file), os.path.realpath(run.path)),
                "recipe_file": self.file.name,
                "settings": identity(self.recipe),
            }
            if origin != known:
                write_json(run.environment, origin)
        note = f"# Changed on the command line: {' '.join(self.overrides)}".replace("\n", "\\n").replace("\r", "\\r")
        if self.overrides and not typed.startswith(f"{note}\n"):
            typed = f"{note}\n{typed}"
        for path, text in ((run.recipe, typed), (run.resolved_recipe, dump_recipe(self.recipe))):
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)


def open_run(recipe: Path, overrides: Sequence[str], out: Path | str | None) -> OpenedRun:
    """Load a recipe and find its run folder, which may not exist yet. Writes nothing.

    Args:
        recipe: the recipe's file, or the folder of a run.
        overrides: `key=value` changes.
        out: the run's folder; default `runs/NAME/ID`.

    Raises:
        RecipeError: the recipe is wrong, or the folder holds a run of another recipe.
    """
    if RunDir(recipe).resolved_recipe.exists():
        if out is not None:
            raise RecipeError("--out has no effect on a run folder", where=str(recipe))
        run = RunDir(recipe)
        loaded = load_recipe(run.resolved_recipe, overrides)
        if overrides:
            _refuse_other_settings(loaded, run, hint=_HINT_FOLDER)
        return OpenedRun(loaded, run, recipe, tuple(overrides), is_default=False)
    loaded = load_recipe(recipe, overrides)
    folder = recipe_folder(recipe)
    run = RunDir(out if out is not None else _default_folder(loaded, folder), recipe_folder=folder)
    if run.resolved_recipe.exists():
        _refuse_other_settings(loaded, run, hint=UNDO_HINT)
        if _has_other_recipe(run, folder):
            raise RecipeError(
                f"holds the run of another recipe, in {os.path.relpath(run.recorded_recipe_folder)}",
                where=str(run),
                hint="give another --out",
            )
    elif run.path.is_dir() and any(path.name != "logs" for path in run.path.iterdir()):
        raise RecipeError("is not empty and holds no run", where=str(run), hint="give another --out")
    return OpenedRun(loaded, run, recipe, tuple(overrides), is_default=out is None)


def recipe_folder(recipe: Path) -> Path:
    """Return the folder that a recipe's relative paths start at: the one in which the user named the recipe's file.

    If the file is a symbolic link, its target's folder does not matter. Links among the folders are resolved.
    """
    return Path(os.path.realpath(recipe.parent))


def identity(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that decide training, which are fixed once a run has begun."""
    settings = recipe.model_dump(mode="json", exclude={"evaluate", "promote", "launch", "trackers"})
    for name in TRAJECTORY_NEUTRAL_KEYS:
        del settings["train"][name]
    if recipe.train.valid_metrics:  # validation answers as `evaluate` says
        used = {*DECODING_KEYS, *(("database",) if "execution" in recipe.train.valid_metrics else ())}
        settings["evaluate"] = recipe.evaluate.model_dump(mode="json", include=used)
    return settings


def location_in_project(folder: Path, current: Path = Path()) -> str:
    """Return a recipe's folder relative to a current one: a part of what the default names of runs are made from."""
    return os.path.relpath(folder, os.path.realpath(current))


def _default_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the run folder of a recipe, which need not exist yet."""
    return _begun_in(Path(), recipe, folder) or _named_folder(Path(), recipe, folder)


def _named_folder(place: Path, recipe: Recipe, folder: Path) -> Path:
    """Return the folder that a run of a recipe gets if it begins in `place`."""
    return place / "runs" / recipe.name / digest_of([identity(recipe), location_in_project(folder, place)])[:8]


def _begun_in(place: Path, recipe: Recipe, folder: Path) -> Path | None:
    """Return the folder of the run of a recipe that began in `place`; None if there is none.

    It has another name than a new run if the recipe's folder was renamed, or if an earlier version of tunesmith, whose
    recipes had fewer keys, began it.
    """
    named = _named_folder(place, recipe, folder)
    if named.exists():
        return named
    others = (path.parent for path in sorted(named.parent.glob("*/environment.json")))
    return next((path for path in others if is_run_of(recipe, RunDir(path, folder), folder)), None)


def is_run_of(recipe: Recipe, run: RunDir, folder: Path) -> bool:
    """Return whether a run is that of the recipe in `folder`: as recorded, or renamed with the same data in it."""
    try:
        if _has_other_recipe(run, folder) or not _has_settings(run, recipe):
            return False
        if _is_same(run.recorded_recipe_folder, folder):
            return True
        unchanged = changed_inputs(PREPARE, recipe, run) == [] and not changed_inputs(TRAIN, recipe, run)
        return unchanged and sources_available(recipe.data.source, folder=folder)
    except TunesmithError:
        return False


def _has_settings(run: RunDir, recipe: Recipe) -> bool:
    """Return whether a run was started with the settings of a recipe."""
    recorded = read_json(run.environment).get("settings") if run.environment.exists() else None
    if isinstance(recorded, str):  # earlier versions recorded their digest
        recorded = identity(load_recipe(run.resolved_recipe))
    return not changed_keys(recorded, identity(recipe), recipe)


def _has_other_recipe(run: RunDir, folder: Path) -> bool:
    """Return whether a run belongs to a recipe in another folder that still exists."""
    return run.environment.exists() and run.recipe_exists and not _is_same(run.recorded_recipe_folder, folder)


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _refuse_other_settings(recipe: Recipe, run: RunDir, *, hint: str) -> None:
    before, now = identity(load_recipe(run.resolved_recipe)), identity(recipe)
    if changed := sorted(changed_keys(before, now)):
        values = [f"{key} is {_at(before, key)} there, not {_at(now, key)}" for key in changed[:_MOST_NAMED]]
        raise RecipeError(
            f"holds a run with other settings ({', '.join(changed[:_MOST_NAMED])}): {'; '.join(values)}",
            where=str(run),
            hint=hint,
        )


def _at(settings: Any, key: str) -> str:
    """Return the value of a dotted key as text."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return repr(settings)


def find_run_elsewhere(opened: OpenedRun) -> Path | None:
    """Return the run of a recipe that began from another current folder: the recipe's own, or one above it.

    None if there is no such run, if this one has begun, or if its folder was given.
    """
    recipe, run = opened.recipe, opened.run
    if run.environment.exists() or not opened.is_default:
        return None
    for place in (run.recipe_folder, *run.recipe_folder.parents):
        found = _begun_in(place, recipe, run.recipe_folder)
        if found and not _is_same(found, run.path):
            return Path(os.path.relpath(found))
    return None
