"""The stages of a run, and the rule by which they run: skip what is done, go on with what is not.

prepare -> train -> evaluate -> (report) -> promote
"""

import importlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_of, only_writer, read_json, remove_leftovers, write_json, write_text
from tunesmith.core.places import cache_root, check_writable, registry_root
from tunesmith.core.progress import clock, say
from tunesmith.core.ranks import place
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.hardware import cores
from tunesmith.recipe.load import dump_recipe, load_recipe
from tunesmith.recipe.plan import DECODING, NEVER_DECIDES
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.own import own_metrics
from tunesmith.track.followers import Followers
from tunesmith.track.tracker import check_installed

if TYPE_CHECKING:
    from tunesmith.model.parallel import Meeting


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: the module of its function, imported only when it has to run, and of its `inputs`, which is light.

    `by_all` says that all processes of a run work at it; other stages are the first one's alone.
    """

    name: str
    module: str
    asked: str
    by_all: bool = False

    def inputs(self, recipe: Recipe, run: RunDir) -> dict[str, Any]:
        """Return what the stage's result follows from."""
        found: Callable[[Recipe, RunDir], dict[str, Any]] = importlib.import_module(self.asked).inputs
        return found(recipe, run)

    def work(self, recipe: Recipe, run: RunDir) -> dict[str, Any]:
        """Run the stage and return its manifest."""
        found: Callable[[Recipe, RunDir], dict[str, Any]] = getattr(importlib.import_module(self.module), self.name)
        return found(recipe, run)


STAGES = (
    Stage("prepare", "tunesmith.data.prepare", "tunesmith.data.inputs"),
    Stage("train", "tunesmith.train.train", "tunesmith.train.inputs", by_all=True),
    Stage("evaluate", "tunesmith.evaluate.evaluate", "tunesmith.evaluate.inputs", by_all=True),
    Stage("promote", "tunesmith.deliver.promote", "tunesmith.deliver.promote"),
)


def run_recipe(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    until: str | None = None,
) -> RunDir:
    """Take a recipe through its stages; finished ones are skipped, an interrupted one goes on.

    In this process, whatever the recipe's `launch` says, or in all that torchrun, accelerate or srun have started.

    Args:
        recipe: the recipe's file, or the folder of a run that is to go on.
        overrides: `key=value` changes.
        out: the run's folder; default `runs/NAME/ID`, where ID follows from the recipe.
        until: the last stage to run; default all that the recipe asks for.

    Raises:
        TunesmithError: of the kind that says what went wrong; its `exit_code` is the command's.
    """
    here = place()
    if here.world == 1:
        return _run(recipe, overrides, out, until, None)
    from tunesmith.model.parallel import meeting

    # Before they meet: how long to wait is the recipe's to say.
    patience = open_run(Path(recipe), overrides, out)[0].launch.patience_minutes
    with meeting(here, patience) as others:
        if here.is_first:
            try:
                run = _run(recipe, overrides, out, until, others)
            finally:
                others.say("")
        else:
            run = _work_along(recipe, overrides, out, others)
    return run


def _run(
    recipe: Path | str, overrides: Sequence[str], out: Path | str | None, until: str | None, others: "Meeting | None"
) -> RunDir:
    """Take a recipe through its stages, as the only process or as the first of many."""
    loaded, run = open_run(Path(recipe), overrides, out)
    check_beforehand(loaded, run, Path(recipe))
    with ExitStack() as held:
        held.enter_context(only_writer(run.lock))
        held.enter_context(interrupt.watched(patient=others is not None))
        write_origin(loaded, run, Path(recipe))
        _write_environment(run)
        remove_leftovers(run.path)
        trackers = held.enter_context(Followers(loaded.track, run, loaded.model_dump(mode="json")))
        for stage in wanted_stages(loaded, until):
            _take(stage, loaded, run, trackers, others)
            if stage.name in ("evaluate", "promote"):  # before promoting too, which the verdict may refuse
                _report(run)
    return run


def wanted_stages(recipe: Recipe, until: str | None = None) -> list[Stage]:
    """Return the stages that a recipe asks for, up to one."""
    names = [stage.name for stage in STAGES]
    wanted = STAGES if until is None else STAGES[: names.index(until) + 1]
    return [stage for stage in wanted if stage.name != "promote" or recipe.promote is not None]


def check_beforehand(recipe: Recipe, run: RunDir, file: Path) -> None:
    """Raise RecipeError for what would stop a run late: a missing tracker, a wrong metric, no place to write to."""
    check_writable(cache_root, *([registry_root] if recipe.promote else []))
    check_installed(recipe.track, recipe.promote.mirror if recipe.promote else None)
    if run.manifest("train") is None:
        own_metrics((*recipe.evaluate.metrics, *recipe.train.valid_metrics), folder_of(run, file))


def folder_of(run: RunDir, file: Path) -> Path:
    """Return the folder that the relative paths of a recipe start at, whether its run was begun or not."""
    return run.origin if run.environment.exists() else file.parent


def _work_along(recipe: Path | str, overrides: Sequence[str], out: Path | str | None, others: "Meeting") -> RunDir:
    """Work at the stages that the first process says, and write nothing."""
    with ExitStack() as held:
        held.enter_context(interrupt.watched(patient=True))
        while name := others.next():
            # Only now, since the first may have made the run's folder.
            loaded, run = open_run(Path(recipe), overrides, out)
            rank = others.group.place.rank
            log = held.enter_context(run.log_of(rank).open("a", encoding="utf-8"))
            with redirect_stderr(log), others.work(run.stacks_of(rank)):
                next(stage for stage in STAGES if stage.name == name).work(loaded, run)
    return open_run(Path(recipe), overrides, out)[1]


def open_run(recipe: Path, overrides: Sequence[str], out: Path | str | None) -> tuple[Recipe, RunDir]:
    """Return the recipe and its run folder, which may not exist yet.

    Raises:
        RecipeError: the recipe is wrong, or the folder holds a run of another recipe.
    """
    if (recipe / "recipe.resolved.yaml").exists():
        if out is not None:
            raise RecipeError("--out has no effect on a run folder", where=str(recipe))
        return load_recipe(recipe / "recipe.resolved.yaml", overrides), RunDir.existing(recipe)
    loaded = load_recipe(recipe, overrides)
    folder = Path(out) if out else Path("runs") / loaded.name / digest_of(identity(loaded))[:8]
    run = RunDir(folder)
    if run.resolved_recipe.exists():
        _refuse_another_recipe(loaded, run)
    elif folder.is_dir() and any(p.name != "logs" for p in folder.iterdir()):
        raise RecipeError("is not empty and holds no run", where=str(folder), hint="give another --out")
    return loaded, run


def identity(recipe: Recipe) -> dict[str, Any]:
    """Return what sets a recipe apart: not where it runs, so what began here may go on in a cluster, in its folder."""
    return recipe.model_dump(mode="json") | {"launch": {"on": "local"}}


# Sections that may change in a run without making finished training wrong.
_MAY_CHANGE = ("evaluate", "promote", "launch", "track", *(f"train.{name}" for name in NEVER_DECIDES))

# But what validation asks and measures, training has already done.
_DECIDE_ANSWERS = tuple(f"evaluate.{name}" for name in (*DECODING, "database"))


def _refuse_another_recipe(recipe: Recipe, run: RunDir) -> None:
    before = load_recipe(run.resolved_recipe).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    changed = sorted(_changed(before, now))
    decided = _DECIDE_ANSWERS if recipe.train.valid_metrics else ()
    fixed = [key for key in changed if not key.startswith(_MAY_CHANGE) or key in decided]
    if fixed:
        raise RecipeError(
            f"holds a run with other settings ({', '.join(fixed[:6])})",
            where=str(run),
            hint="give another --out; what was trained there is kept as it is",
        )


def _changed(before: Any, now: Any, path: str = "") -> set[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = before.keys() | now.keys()
        return set().union(*(_changed(before.get(k), now.get(k), f"{path}.{k}" if path else k) for k in keys))
    return {path} if before != now else set()


def write_origin(recipe: Recipe, run: RunDir, file: Path) -> None:
    """Write what the run starts from: the recipe as typed and resolved, and where it was."""
    resolved = dump_recipe(recipe)
    if not run.resolved_recipe.exists() or run.resolved_recipe.read_text(encoding="utf-8") != resolved:
        write_text(run.resolved_recipe, resolved)
    if file.is_dir():
        return
    write_text(run.recipe, file.read_text(encoding="utf-8-sig"))
    if not run.environment.exists():
        write_json(run.environment, {"recipe_folder": os.path.relpath(file.resolve().parent, run.path.resolve())})


def _write_environment(run: RunDir) -> None:
    """Add to where the recipe was what machine begins the run, which need not be the one that it was submitted from."""
    told = read_json(run.environment)
    if "started" not in told:
        write_json(run.environment, {**told, **environment()})


_PACKAGES = (
    "tunesmith", "torch", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "safetensors", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what machine this is and which versions are installed, without importing any of them."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(memory, 1),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def work_left(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """Return for each stage that the recipe asks for whether it is `done` or `to do`."""
    return {stage.name: "done" if run.manifest(stage.name) else "to do" for stage in wanted_stages(recipe)}


def _take(stage: Stage, recipe: Recipe, run: RunDir, trackers: Followers, others: "Meeting | None") -> None:
    """Run a stage unless its manifest names the same inputs."""
    stated = stage.inputs(recipe, run)
    manifest = run.manifest(stage.name)
    if manifest is not None and manifest["inputs"] == stated:
        say(f"{stage.name}: done before")
        return
    if manifest is not None and stage.name in ("prepare", "train"):
        differ = ", ".join(sorted(_changed(manifest["inputs"], stated)))
        raise RecipeError(
            f"{stage.name} was done with other inputs ({differ}); it is kept as it is",
            where=str(run),
            hint="give another --out to start anew",
        )
    (run.stage(stage.name) / MANIFEST).unlink(missing_ok=True)
    began = time.monotonic()
    say(f"{stage.name}: starts")
    trackers.start()
    with ExitStack() as held:
        if others is not None and stage.by_all:
            others.say(stage.name)
            held.enter_context(others.work(run.stacks_of(others.group.place.rank)))
        stage.work(recipe, run)
    say(f"{stage.name}: done in {clock(time.monotonic() - began)}")


def _report(run: RunDir) -> None:
    """Write the report if a stage finished after it was written."""
    finished = [path for stage in STAGES if (path := run.stage(stage.name) / MANIFEST).exists()]
    newest = max(path.stat().st_mtime_ns for path in finished)
    if run.report.exists() and run.report.stat().st_mtime_ns >= newest:
        return
    from tunesmith.report.render import write_report

    write_report(run)
    say(f"report: {run.report}")
