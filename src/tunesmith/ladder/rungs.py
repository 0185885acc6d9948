"""The rungs of a ladder: every combination of its axes' values, checked as recipes. Nothing here runs one."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, read_json, remove_leftovers, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.pipeline.runner import check_beforehand, stages_done
from tunesmith.pipeline.runs import identity, open_run, place_of, recipe_folder, write_origin
from tunesmith.recipe.launch import TorchrunLaunch
from tunesmith.recipe.load import RecipeProblems, load_recipe
from tunesmith.recipe.schema import Recipe

MODEL = "model.base"
_LIST = "rungs.json"
# What every rung has in common, or they could not be compared.
_COMMON = ("name", "evaluate", "promote", "launch", "track")
# What makes a rung small along an axis, by the section that the axis is in.
_MEASURES = {"model": "model_parameters", "tuning": "trained_parameters", "data": "train_rows"}
_MOST_CONFIDENCE = 0.999  # beyond it `paired_verdict` gives no interval


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the recipe and the values it takes, as written."""

    key: str
    values: tuple[str, ...]

    @property
    def measure(self) -> str:
        """What a rung is small in along this axis: a key of an outcome's `measures`."""
        return _MEASURES.get(self.key.partition(".")[0], "tokens")


@dataclass(frozen=True, slots=True)
class Rung:
    """One run of the ladder: its number from 1, its folder's name, and the overrides that make it."""

    number: int
    folder: str
    changes: tuple[str, ...]

    @property
    def label(self) -> str:
        """What sets the rung apart, for people: `rank 8, train_rows 400`."""
        pairs = [change.partition("=") for change in self.changes]
        return ", ".join(value if key == MODEL else f"{key.rpartition('.')[2]} {value}" for key, _, value in pairs)


@dataclass(frozen=True, slots=True)
class Ladder:
    """A ladder and the folder it is kept in, one ordinary run folder per rung."""

    path: Path
    axes: tuple[Axis, ...]
    overrides: tuple[str, ...]
    rungs: tuple[Rung, ...]

    def run(self, rung: Rung) -> RunDir:
        """Return the run folder of a rung."""
        return RunDir(self.path / rung.folder)

    def recipe(self, rung: Rung) -> Recipe:
        """Return the recipe of a rung, once its folder is written."""
        return load_recipe(self.run(rung).resolved_recipe)

    @property
    def lock(self) -> Path:
        """Held while a process climbs."""
        return self.path / "logs" / "lock"


def is_ladder(folder: Path) -> bool:
    """Say whether a folder holds a ladder."""
    return (folder / _LIST).exists()


def read_ladder(folder: Path) -> Ladder:
    """Return the ladder that `write_ladder` left in a folder.

    Raises:
        RecipeError: there is none.
    """
    if not is_ladder(folder):
        raise RecipeError("holds no ladder", where=str(folder), hint="name a folder that `tunesmith ladder` wrote")
    found = read_json(folder / _LIST)
    return Ladder(
        folder,
        tuple(Axis(axis["key"], tuple(axis["values"])) for axis in found["axes"]),
        tuple(found["overrides"]),
        tuple(Rung(rung["number"], rung["folder"], tuple(rung["changes"])) for rung in found["rungs"]),
    )


def list_rungs(
    recipe: Path,
    *,
    over: Sequence[str] = (),
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> Ladder:
    """Return the ladder of a recipe over its axes, each rung checked as a recipe of its own. Writes nothing.

    Args:
        recipe: the recipe's file.
        over: axes, each `key=value,value,...`; a comma inside brackets or quotes belongs to the value.
        models: values of `model.base`; they come before the other axes.
        overrides: `key=value` changes that all rungs have.
        out: the ladder's folder; default `runs/NAME/ladder-ID`, where ID follows from the recipes.

    Raises:
        RecipeError: an axis makes no sense, or a rung's recipe is wrong; all mistakes of all rungs are told.
    """
    axes = _axes(over, models, overrides)
    changes = [
        tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    if len(changes) < 2:
        raise RecipeError("a ladder has two rungs at least", hint="give --models A,B or --over tuning.rank=2,8,32")
    recipes = _checked(recipe, overrides, changes)
    first = recipes[0]
    if isinstance(first.launch, TorchrunLaunch):
        raise RecipeError("a rung is one process, and `launch` asks for torchrun", hint="'launch={on: local}'")
    if correction(first.evaluate.confidence, len(changes)) > _MOST_CONFIDENCE + 1e-9:
        most = int((1 - first.evaluate.confidence) / (1 - _MOST_CONFIDENCE) + 1e-9)
        raise RecipeError(
            f"{len(changes)} rungs are too many to be sure of at confidence {first.evaluate.confidence:g}",
            hint=f"take {most} or fewer, or lower evaluate.confidence",
        )
    rungs = tuple(Rung(n, f"{n:02d}-{_slug(made)}", made) for n, made in enumerate(changes, 1))
    digest = digest_of([*map(identity, recipes), place_of(recipe_folder(recipe))])[:8]
    return Ladder(out or Path("runs") / first.name / f"ladder-{digest}", axes, tuple(overrides), rungs)


def correction(confidence: float, rungs: int) -> float:
    """Return the confidence of each interval that makes all of them hold together (Bonferroni).

    Dunn 1961, "Multiple Comparisons among Means", JASA 56: the errors of the intervals add up to at most their sum,
    however they depend on each other; here all rungs answer the same questions, so they do.
    """
    return 1 - (1 - confidence) / rungs


def check_ladder(ladder: Ladder, recipe: Path) -> list[tuple[Recipe, RunDir]]:
    """Return each rung's recipe and run folder. Writes nothing.

    Raises:
        RecipeError: the folder holds something else, or a rung that has not begun could not: its base, a metric or a
            place to write is missing.
        DataError: the rows or the database of such a rung do not exist.
    """
    opened = _opened(ladder, recipe)
    for loaded, run in opened:
        if run.manifest("prepare") is None:
            check_beforehand(loaded, run, "evaluate")
            stages_done(loaded, run, "evaluate")
    return opened


def _opened(ladder: Ladder, recipe: Path) -> list[tuple[Recipe, RunDir]]:
    """Return each rung's recipe and run folder; raise RecipeError if the ladder's folder holds something else."""
    if is_ladder(ladder.path):
        before = read_ladder(ladder.path)
        if before.axes != ladder.axes:
            raise RecipeError("holds a ladder over other axes", where=str(ladder.path), hint="give another --out")
    elif ladder.path.is_dir() and any(path.name != "logs" for path in ladder.path.iterdir()):
        raise RecipeError("is not empty and holds no ladder", where=str(ladder.path), hint="give another --out")
    return [open_run(recipe, [*ladder.overrides, *rung.changes], ladder.run(rung).path) for rung in ladder.rungs]


def write_ladder(ladder: Ladder, recipe: Path) -> None:
    """Write the list of rungs, and of each rung what its run starts from; what is there already is kept.

    Raises:
        RecipeError: the folder holds something else.
    """
    opened = _opened(ladder, recipe)
    remove_leftovers(ladder.path)
    write_json(
        ladder.path / _LIST,
        {
            "axes": [asdict(axis) for axis in ladder.axes],
            "overrides": ladder.overrides,
            "rungs": [asdict(rung) for rung in ladder.rungs],
        },
    )
    for (loaded, run), rung in zip(opened, ladder.rungs, strict=True):
        write_origin(loaded, run, recipe, [*ladder.overrides, *rung.changes])


def _axes(over: Sequence[str], models: Sequence[str], overrides: Sequence[str]) -> tuple[Axis, ...]:
    axes = [Axis(MODEL, tuple(models))] if models else []
    for text in over:
        key, sign, values = text.partition("=")
        if not sign or not key:
            raise RecipeError(f"`{text}` is not an axis", hint="write key=value,value, such as tuning.rank=2,8,32")
        axes.append(Axis(key, tuple(split_values(values))))
    fixed = {override.partition("=")[0] for override in overrides}
    for place, axis in enumerate(axes):
        _check_axis(axis, fixed | {other.key for other in axes[:place]})
    return tuple(axes)


def _check_axis(axis: Axis, taken: set[str]) -> None:
    key = axis.key
    for other in taken:
        if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
            raise RecipeError(f"`{key}` is an axis, and `{other}` sets it too", hint="leave one of them out")
    if key.partition(".")[0] in _COMMON:
        raise RecipeError(
            f"`{key}` cannot be an axis: all rungs are asked and judged alike",
            hint="an axis changes what is trained: keys of model, data, tuning, train",
        )
    if not all(axis.values):
        raise RecipeError(f"the axis `{key}` has an empty value")
    if len(set(axis.values)) < len(axis.values):
        raise RecipeError(f"the axis `{key}` has a value twice ({', '.join(axis.values)})")


def split_values(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes: `a,[b,c]` is `a` and `[b,c]`."""
    values, depth, quote, start = [], 0, "", 0
    for place, mark in enumerate(text):
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark == "," and depth == 0:
            values.append(text[start:place])
            start = place + 1
        else:
            depth += (mark in "[{") - (mark in "]}")
    return [value.strip() for value in [*values, text[start:]]]


def _checked(recipe: Path, overrides: Sequence[str], changes: Sequence[tuple[str, ...]]) -> list[Recipe]:
    """Return the recipe of every rung, its model found; raise RecipeError with the mistakes of all."""
    found: list[Recipe] = []
    told: dict[str, dict[str, None]] = {}  # what is wrong -> where, each once and in order
    for made in changes:
        try:
            found.append(load_recipe(recipe, [*overrides, *made]))
        except RecipeProblems as error:
            for problem in error.problems:
                told.setdefault(f"{problem.key}: {problem.message}", {})[problem.where] = None
        except RecipeError as error:
            told.setdefault(str(error), {})
    for base in dict.fromkeys(one.model.base for one in found):
        try:
            resolve(base, relative_to=recipe_folder(recipe))
        except RecipeError as error:
            told.setdefault(str(error), {})[MODEL] = None
    if told:
        raise RecipeError("\n".join(": ".join([*filter(None, [" and ".join(at)]), what]) for what, at in told.items()))
    return found


def _slug(changes: tuple[str, ...]) -> str:
    """Return a name that any file system takes; the number before it makes it the only one."""
    parts = []
    for change in changes:
        key, _, value = change.partition("=")
        parts.append(f"{key.rpartition('.')[2]}-{value.rpartition('/')[2]}")
    return re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(parts))[:60].strip("-.")
