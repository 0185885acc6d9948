"""The trials of a sweep: every combination of its axes' values, each checked as a recipe."""

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import digest_of, read_json, remove_leftovers, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.pipeline.runner import check_prerequisites, finished_stages
from tunesmith.pipeline.runs import OpenedRun, identity, is_run_of, location_in_project, open_run, recipe_folder
from tunesmith.recipe.launch import TorchrunLaunch
from tunesmith.recipe.load import RecipeProblems, load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.verdict import MAX_CONFIDENCE, corrected_confidence

MODEL = "model.base"
_LIST = "trials.json"
# Sections that all trials share; otherwise they could not be compared.
_SHARED = ("name", "evaluate", "promote", "export", "launch", "trackers", "replicates")
# The measure that orders trials by size along an axis, by the section of the axis.
_MEASURES = {"model": "model_parameters", "tuning": "trained_parameters", "data": "train_rows"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the recipe and the values it takes, as written."""

    key: str
    values: tuple[str, ...]

    @property
    def measure(self) -> str:
        """The measure that orders trials by size along this axis: a key of `TrialResult.measures`."""
        return _MEASURES.get(self.key.partition(".")[0], "tokens")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the sweep: its number from 1, the name of its folder, and its overrides of the recipe."""

    number: int
    folder: str
    changes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The trial's values, for people: `rank 8, train_rows 400`."""
        pairs = [change.partition("=") for change in self.changes]
        return ", ".join(value if key == MODEL else f"{key.rpartition('.')[2]} {value}" for key, _, value in pairs)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep and its folder, which has one ordinary run folder per trial."""

    path: Path
    axes: tuple[Axis, ...]
    overrides: tuple[str, ...]
    trials: tuple[Trial, ...]

    def run(self, trial: Trial) -> RunDir:
        """Return the run folder of a trial."""
        return RunDir(self.path / trial.folder)

    def recipe(self, trial: Trial) -> Recipe:
        """Return the recipe of a trial, once its folder is written."""
        return load_recipe(self.run(trial).resolved_recipe)

    @property
    def lock(self) -> Path:
        """Lock file, held while a process runs the sweep."""
        return self.path / "logs" / "lock"


def is_sweep(folder: Path) -> bool:
    """Return whether a folder contains a sweep.

    Raises:
        RecipeError: it contains a ladder, the former name and format of a sweep.
    """
    if (folder / "rungs.json").exists():
        message = "contains a ladder, the former name and format of a sweep"
        hint = "its subfolders are still ordinary runs; to compare them again, run the sweep with another --out"
        raise RecipeError(message, where=str(folder), hint=hint, code="old-sweep")
    return (folder / _LIST).exists()


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep that `write_sweep` wrote into a folder.

    Raises:
        RecipeError: the folder contains no sweep.
    """
    if not is_sweep(folder):
        hint = "name a folder that `tunesmith sweep` wrote"
        raise RecipeError("contains no sweep", where=str(folder), hint=hint, code="not-a-sweep")
    written = read_json(folder / _LIST)
    return Sweep(
        folder,
        tuple(Axis(axis["key"], tuple(axis["values"])) for axis in written["axes"]),
        tuple(written["overrides"]),
        tuple(Trial(trial["number"], trial["folder"], tuple(trial["changes"])) for trial in written["trials"]),
    )


def list_trials(
    recipe: Path,
    *,
    over: Sequence[str] = (),
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> Sweep:
    """Combine the axes into trials and check the recipe of each. Writes nothing.

    Args:
        recipe: the recipe's file.
        over: axes, each `key=value,value,...`; a comma inside brackets or quotes belongs to the value.
        models: values of `model.base`; they come before the other axes.
        overrides: `key=value` changes for all trials.
        out: the sweep's folder; default `runs/NAME/sweep-ID`, where ID follows from the recipes.

    Raises:
        RecipeError: an axis is invalid, or a trial's recipe is; lists all mistakes of all trials.
    """
    axes = _axes(over, models, overrides)
    changes = list(itertools.product(*([f"{axis.key}={value}" for value in axis.values] for axis in axes)))
    if len(changes) < 2:
        hint = "pass --models A,B or --over tuning.rank=2,8,32"
        raise RecipeError("a sweep needs at least two trials", hint=hint, code="number-of-trials")
    recipes = _load_all(recipe, overrides, changes)
    first = recipes[0]
    if isinstance(first.launch, TorchrunLaunch):
        message, hint = "a trial is one process, but `launch` asks for torchrun", "add 'launch={on: local}'"
        raise RecipeError(message, where="launch.on", hint=hint, code="trial-processes")
    confidence = first.evaluate.confidence
    if corrected_confidence(confidence, len(changes)) > MAX_CONFIDENCE + 1e-9:
        message = f"{len(changes)} trials are too many for intervals at confidence {confidence:g}"
        max_trials = int((1 - confidence) / (1 - MAX_CONFIDENCE) + 1e-9)
        hint = f"take {max_trials} or fewer, or lower evaluate.confidence"
        raise RecipeError(message, hint=hint, code="number-of-trials")
    trials = tuple(Trial(n, f"{n:02d}-{_slug(values)}", values) for n, values in enumerate(changes, 1))
    return Sweep(out or _default_folder(recipes, axes, trials, recipe_folder(recipe)), axes, tuple(overrides), trials)


def _default_folder(recipes: Sequence[Recipe], axes: tuple[Axis, ...], trials: tuple[Trial, ...], folder: Path) -> Path:
    """Return the default folder of a sweep of the recipes in `folder`; it may not exist yet.

    As for a run, its name differs if an earlier version of tunesmith started it.
    """
    digest = digest_of([*map(identity, recipes), location_in_project(folder)])[:8]
    expected = Path("runs") / recipes[0].name / f"sweep-{digest}"
    if not expected.exists():
        for path in sorted(expected.parent.glob(f"sweep-*/{_LIST}")):
            runs = [RunDir(path.parent / trial.folder, folder) for trial in trials]
            with contextlib.suppress(TunesmithError):
                before = read_sweep(path.parent)
                is_same = (before.axes, before.trials) == (axes, trials)
                if is_same and all(map(is_run_of, recipes, runs, itertools.repeat(folder))):
                    return path.parent
    return expected


def check_sweep(sweep: Sweep, recipe: Path) -> list[OpenedRun]:
    """Open each trial's run. Writes nothing.

    Raises:
        RecipeError: the sweep's folder contains something else, or a trial cannot start because its base, a metric or a
            writable folder is missing.
        DataError: the rows or the database of a trial do not exist.
    """
    opened = _open_trials(sweep, recipe)
    for trial in opened:
        if trial.run.manifest("prepare") is None:
            check_prerequisites(trial.recipe, trial.run, "evaluate")
            finished_stages(trial.recipe, trial.run, "evaluate")
    return opened


def _open_trials(sweep: Sweep, recipe: Path) -> list[OpenedRun]:
    """Open each trial's run; raise RecipeError if the sweep's folder contains something else."""
    where, hint = str(sweep.path), "pass another --out"
    if is_sweep(sweep.path):
        if read_sweep(sweep.path).axes != sweep.axes:
            raise RecipeError("contains a sweep over other axes", where=where, hint=hint, code="other-sweep")
    elif sweep.path.is_dir() and any(path.name != "logs" for path in sweep.path.iterdir()):
        raise RecipeError("is not empty and contains no sweep", where=where, hint=hint, code="folder-not-empty")
    return [open_run(recipe, [*sweep.overrides, *trial.changes], sweep.run(trial).path) for trial in sweep.trials]


def write_sweep(sweep: Sweep, recipe: Path) -> None:
    """Write the list of trials and the initial files of each run. Existing files are kept.

    Raises:
        RecipeError: the folder contains something else.
    """
    opened = _open_trials(sweep, recipe)
    remove_leftovers(sweep.path)
    write_json(sweep.path / _LIST, {key: value for key, value in asdict(sweep).items() if key != "path"})
    for trial in opened:
        trial.write_origin()


def _axes(over: Sequence[str], models: Sequence[str], overrides: Sequence[str]) -> tuple[Axis, ...]:
    axes = [Axis(MODEL, tuple(models))] if models else []
    for text in over:
        key, sign, values = text.partition("=")
        if not sign or not key:
            raise _axis_error(f"`{text}` is not an axis", "write key=value,value, such as tuning.rank=2,8,32")
        axes.append(Axis(key, tuple(split_values(values))))
    fixed = {override.partition("=")[0] for override in overrides}
    for index, axis in enumerate(axes):
        _check_axis(axis, fixed | {other.key for other in axes[:index]})
    return tuple(axes)


def _check_axis(axis: Axis, taken: set[str]) -> None:
    key = axis.key
    for other in taken:
        if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
            raise _axis_error(f"`{key}` is an axis, but `{other}` sets it too", "leave one of them out")
    if key.partition(".")[0] in _SHARED:
        message = f"`{key}` cannot be an axis: all trials share it, so that they can be compared"
        raise _axis_error(message, "an axis changes what is trained: keys of model, data, tuning, train")
    if not all(axis.values):
        raise _axis_error(f"the axis `{key}` has an empty value", "remove the comma that has no value")
    if len(set(axis.values)) < len(axis.values):
        raise _axis_error(f"the axis `{key}` has a value twice ({', '.join(axis.values)})", "list each value once")


def _axis_error(message: str, hint: str) -> RecipeError:
    return RecipeError(message, hint=hint, code="wrong-axis")


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: `a,[b,c]` is `a` and `[b,c]`."""
    values, depth, quote, start = [], 0, "", 0
    for index, mark in enumerate(text):
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark == "," and depth == 0:
            values.append(text[start:index])
            start = index + 1
        else:
            depth += (mark in "[{") - (mark in "]}")
    return [value.strip() for value in [*values, text[start:]]]


def _load_all(recipe: Path, overrides: Sequence[str], changes: Sequence[tuple[str, ...]]) -> list[Recipe]:
    """Load the recipe of each trial and find its base; raise one RecipeError that lists the mistakes of all trials."""
    recipes: list[Recipe] = []
    mistakes: dict[str, dict[str, None]] = {}  # message -> places, each once and in order
    for values in changes:
        try:
            recipes.append(load_recipe(recipe, [*overrides, *values]))
        except RecipeProblems as error:
            for problem in error.problems:
                mistakes.setdefault(f"{problem.key}: {problem.message}", {})[problem.where] = None
        except RecipeError as error:
            mistakes.setdefault(str(error), {})
    for base in dict.fromkeys(recipe.model.base for recipe in recipes):
        try:
            resolve(base, relative_to=recipe_folder(recipe))
        except RecipeError as error:
            mistakes.setdefault(str(error), {})[MODEL] = None
    if mistakes:
        lines = (": ".join([*filter(None, [" and ".join(places)]), text]) for text, places in mistakes.items())
        raise RecipeError("\n".join(lines), code="invalid-trials")
    return recipes


def _slug(changes: tuple[str, ...]) -> str:
    """Return a folder name that any file system accepts; the trial's number in front makes it unique."""
    pairs = [change.partition("=") for change in changes]
    parts = [f"{key.rpartition('.')[2]}-{value.rpartition('/')[2]}" for key, _, value in pairs]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(parts))[:60].strip("-.")
