"""Find the folder of a run, and record what the run starts from.

A run is identified by the settings that determine training and by the path of its recipe's folder, relative to the
folder that contains `runs/`. The settings for replicates, evaluation, promotion, export, launch and trackers may
change later.
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
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.load import dump_recipe, load_recipe
from tunesmith.recipe.schedule import DECODING_KEYS, RESULT_NEUTRAL_KEYS
from tunesmith.recipe.schema import Recipe

_MAX_KEYS_SHOWN = 4
_RESUME_HINT = "leave the change out to resume this run, or run the recipe's file with it to start another run"


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run and its recipe, which a process loads only once.

    Attributes:
        file: the recipe's file or the run's folder, as the user gave it.
        overrides: the user's `key=value` changes.
        is_default: the run's folder follows from the recipe; the user gave none.
    """

    recipe: Recipe
    run: RunDir
    file: Path
    overrides: tuple[str, ...]
    is_default: bool

    def write_origin(self) -> None:
        """Record the recipe, as written and resolved, and its folder. Call after all checks."""
        run = self.run
        if self.file.is_dir():
            written = run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else ""
        else:
            written = self.file.read_text(encoding="utf-8-sig")
            recorded = read_json(run.environment) if run.environment.exists() else {}
            origin = {
                **recorded,
                "recipe_folder": os.path.relpath(recipe_folder(self.file), os.path.realpath(run.path)),
                "recipe_file": self.file.name,
                "settings": identity(self.recipe),
            }
            if origin != recorded:
                write_json(run.environment, origin)
        note = f"# Changed on the command line: {' '.join(self.overrides)}".replace("\n", "\\n").replace("\r", "\\r")
        if self.overrides and not written.startswith(f"{note}\n"):
            written = f"{note}\n{written}"
        for path, text in ((run.recipe, written), (run.resolved_recipe, dump_recipe(self.recipe))):
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)


def open_run(recipe: Path, overrides: Sequence[str], out: Path | str | None) -> OpenedRun:
    """Load a recipe and find its run folder, which may not exist yet. Writes nothing.

    Args:
        recipe: the recipe's file, or the folder of a run.
        overrides: `key=value` changes.
        out: the run's folder; default `runs/NAME/ID`.

    Raises:
        RecipeError: the recipe is invalid, or the folder contains something else or a run of another recipe.
    """
    if RunDir(recipe).resolved_recipe.exists():
        if out is not None:
            message = "--out has no effect on the folder of a run"
            raise RecipeError(message, where=str(recipe), hint="leave it out", code="usage")
        run = RunDir(recipe)
        loaded = load_recipe(run.resolved_recipe, overrides)
        if overrides:
            _require_same_settings(loaded, run, hint=_RESUME_HINT)
        return OpenedRun(loaded, run, recipe, tuple(overrides), is_default=False)
    loaded = load_recipe(recipe, overrides)
    folder = recipe_folder(recipe)
    run = RunDir(out if out is not None else _default_folder(loaded, folder), recipe_folder=folder)
    if run.resolved_recipe.exists():
        _require_same_settings(loaded, run, hint=UNDO_HINT)
        if _has_other_recipe(run, folder):
            problem = f"contains a run of another recipe (in {os.path.relpath(run.recorded_recipe_folder)})"
            raise RecipeError(problem, where=str(run), hint="pass another --out", code="other-run")
    elif run.path.is_dir() and any(path.name != "logs" for path in run.path.iterdir()):
        problem = "is not empty and contains no run"
        raise RecipeError(problem, where=str(run), hint="pass another --out", code="folder-not-empty")
    return OpenedRun(loaded, run, recipe, tuple(overrides), is_default=out is None)


def recipe_folder(recipe: Path) -> Path:
    """Return the folder that a recipe's relative paths start at: that of the file as the user named it.

    If the file is a symbolic link, this is the folder of the link. Links among the parent folders are resolved.
    """
    return Path(os.path.realpath(recipe.parent))


def identity(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that determine training. They are fixed once a run has started."""
    settings = recipe.model_dump(
        mode="json", exclude={"evaluate", "promote", "export", "launch", "trackers", "replicates"}
    )
    for name in RESULT_NEUTRAL_KEYS:
        del settings["train"][name]
    if recipe.train.valid_metrics:  # validation generates answers with the settings of `evaluate`
        used = {*DECODING_KEYS, *(("database",) if "execution" in recipe.train.valid_metrics else ())}
        settings["evaluate"] = recipe.evaluate.model_dump(mode="json", include=used)
    return settings


def location_in_project(folder: Path, current: Path = Path()) -> str:
    """Return a recipe's folder relative to a current folder. The default name of a run depends on it."""
    return os.path.relpath(folder, os.path.realpath(current))


def _default_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the default run folder of a recipe, which may not exist yet."""
    return _find_run_below(Path(), recipe, folder) or _new_run_folder(Path(), recipe, folder)


def _new_run_folder(current: Path, recipe: Recipe, folder: Path) -> Path:
    """Return the folder of a run of the recipe in `folder` that is started in the folder `current`."""
    return current / "runs" / recipe.name / digest_of([identity(recipe), location_in_project(folder, current)])[:8]


def _find_run_below(current: Path, recipe: Recipe, folder: Path) -> Path | None:
    """Return the existing run of the recipe in `folder` that was started in `current`; None if there is none.

    Its name differs from that of a new run if the recipe's folder was renamed since, or if an earlier version of
    tunesmith, whose recipes had fewer keys, started it.
    """
    expected = _new_run_folder(current, recipe, folder)
    if expected.exists():
        return expected
    others = (path.parent for path in sorted(expected.parent.glob("*/environment.json")))
    return next((path for path in others if is_run_of(recipe, RunDir(path, folder), folder)), None)


def is_run_of(recipe: Recipe, run: RunDir, folder: Path) -> bool:
    """Return whether a run belongs to the recipe in `folder`. If the folder was renamed, its data must be the same."""
    try:
        if _has_other_recipe(run, folder) or not _has_settings(run, recipe):
            return False
        if _is_same(run.recorded_recipe_folder, folder):
            return True
        unchanged = changed_inputs(PREPARE, recipe, run) == [] and not changed_inputs(TRAIN, recipe, run)
        return unchanged and sources_available(all_sources(recipe.data), folder=folder)
    except TunesmithError:
        return False


def _has_settings(run: RunDir, recipe: Recipe) -> bool:
    """Return whether a run was started with the settings of a recipe that determine training."""
    recorded = read_json(run.environment).get("settings") if run.environment.exists() else None
    if isinstance(recorded, str):  # earlier versions recorded their digest
        recorded = identity(load_recipe(run.resolved_recipe))
    return not changed_keys(recorded, identity(recipe), recipe)


def _has_other_recipe(run: RunDir, folder: Path) -> bool:
    """Return whether a run belongs to a recipe in another folder that still exists."""
    return run.environment.exists() and run.recipe_exists and not _is_same(run.recorded_recipe_folder, folder)


def _is_same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _require_same_settings(recipe: Recipe, run: RunDir, *, hint: str) -> None:
    """Raise RecipeError if a run was started with other settings than the recipe's."""
    before, now = identity(load_recipe(run.resolved_recipe)), identity(recipe)
    if changed := sorted(changed_keys(before, now)):
        values = [f"{key} is {_value(before, key)}, not {_value(now, key)}" for key in changed[:_MAX_KEYS_SHOWN]]
        more = f"; {len(changed) - len(values)} more" if len(changed) > len(values) else ""
        problem = f"contains a run with other settings: {'; '.join(values)}{more}"
        raise RecipeError(problem, where=str(run), hint=hint, code="settings-changed")


def _value(settings: Any, key: str) -> str:
    """Return the value of a dotted key as text."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return repr(settings)


def find_run_elsewhere(opened: OpenedRun) -> Path | None:
    """Return the run of the same recipe that was started in another folder: the recipe's own folder or one above it.

    Return None if there is no such run, if `opened` has already started, or if the user chose its folder.
    """
    recipe, run = opened.recipe, opened.run
    if run.environment.exists() or not opened.is_default:
        return None
    for current in (run.recipe_folder, *run.recipe_folder.parents):
        other = _find_run_below(current, recipe, run.recipe_folder)
        if other and not _is_same(other, run.path):
            return Path(os.path.relpath(other))
    return None
