"""Takes a run through its stages: finished ones are skipped, an interrupted one is resumed."""

import os
import platform
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, redirect_stderr
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import interrupt
from tunesmith.core.dist_env import rank_info
from tunesmith.core.files import MANIFEST, read_json, remove_leftovers, write_json
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import format_duration, log
from tunesmith.core.rundir import RunDir
from tunesmith.core.user_folders import cache_root, check_writable, registry_root
from tunesmith.data.recipe_files import keep_recipe_files
from tunesmith.estimate.hardware import available_cores
from tunesmith.pipeline.runs import OpenedRun, open_run, run_elsewhere
from tunesmith.pipeline.stages import EVALUATE, PREPARE, PROMOTE, STAGES, TRAIN, Stage, is_done, wanted_stages
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import custom_metrics
from tunesmith.track.followers import TrackerSupervisor
from tunesmith.track.tracker import check_installed

if TYPE_CHECKING:
    from tunesmith.distributed.process_group import StageCoordinator


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
    return run_opened(open_run(Path(recipe), overrides, out), until=until)


def run_opened(opened: OpenedRun, *, until: str | None = None) -> RunDir:
    """Take a run through its stages, as `run_recipe` does."""
    here = rank_info()
    if here.world_size == 1:
        return _run(opened, until, None)
    from tunesmith.distributed.process_group import join_process_group

    with join_process_group(here, opened.recipe.launch.timeout_minutes) as coordinator:
        if not here.is_rank0:
            _work_along(opened, coordinator)
            return opened.run
        try:
            return _run(opened, until, coordinator)
        finally:
            coordinator.announce("")


def _run(opened: OpenedRun, until: str | None, coordinator: "StageCoordinator | None") -> RunDir:
    """Take a run through its stages, as the only process or as the first of many."""
    loaded, run = opened.recipe, opened.run
    check_beforehand(loaded, run, until)
    done = stages_done(loaded, run, until)
    if other := run_elsewhere(opened):
        log(f"starting a new run in {run}; to continue the existing one: tunesmith run {other}")
    with ExitStack() as held:
        held.enter_context(exclusive_lock(run.lock))
        held.enter_context(interrupt.catch_signals(patient=coordinator is not None))
        opened.write_origin()
        keep_recipe_files(loaded, run)
        _write_environment(run)
        remove_leftovers(run.path)
        trackers = held.enter_context(TrackerSupervisor(loaded.trackers, run, loaded.model_dump(mode="json")))
        for stage in wanted_stages(loaded, until):
            if stage is TRAIN and stage.name not in done:
                _check_questions(loaded, run)
            _take(stage, loaded, run, trackers, coordinator, done)
            if stage.name in ("evaluate", "promote"):  # before promoting too, which the verdict may refuse
                _report(run)
    return run


def check_beforehand(recipe: Recipe, run: RunDir, until: str | None = None) -> None:
    """Raise RecipeError for a folder that cannot be written, a missing tracker or a wrong metric, before any work."""
    promotes = PROMOTE in wanted_stages(recipe, until) and PROMOTE.changes(recipe, run) != []
    check_writable(cache_root(), *([registry_root()] if promotes else []))
    check_writable(run.path, hint="name a folder that you may write to with --out")
    check_installed(recipe.trackers, recipe.promote.mirror if recipe.promote else None)
    if EVALUATE.changes(recipe, run) != []:
        custom_metrics((*recipe.evaluate.metrics, *recipe.train.valid_metrics), run.recipe_folder)


def stages_done(recipe: Recipe, run: RunDir, until: str | None = None) -> list[str]:
    """Return the names of the stages that need not run. Writes nothing, so a refusal leaves the run as it was.

    Raises:
        RecipeError: the run was made from other inputs, or the base does not exist.
        DataError: the data or the database does not exist.
    """
    wanted = wanted_stages(recipe, until)
    for stage in (PREPARE, EVALUATE):
        if stage in wanted and run.manifest(stage.name) is None:
            stage.inputs(recipe, run)
    return [stage.name for stage in wanted if is_done(stage, recipe, run)]


def _check_questions(recipe: Recipe, run: RunDir) -> None:
    """Warn of prepared rows that cannot be answered or scored; raise RecipeError if there would be no verdict."""
    from tunesmith.pipeline.checks import check_prepared_questions  # slow to import, and most commands do not train

    for warning in check_prepared_questions(recipe, run):
        log(f"warning: {warning}")


def _work_along(opened: OpenedRun, coordinator: "StageCoordinator") -> None:
    """Work at the stages that the first process says, and write nothing."""
    run, rank = opened.run, coordinator.group.rank_info.rank
    with ExitStack() as held:
        held.enter_context(interrupt.catch_signals(patient=True))
        while name := coordinator.next_stage():
            # Only now, since the first makes the run's folder.
            log = held.enter_context(run.rank_log(rank).open("a", encoding="utf-8"))
            with redirect_stderr(log), coordinator.dump_stacks_on_hang(run.rank_stacks(rank)):
                next(stage for stage in STAGES if stage.name == name).work(opened.recipe, run)


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
        "cores": available_cores(),
        "memory_gib": round(memory, 1),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _take(
    stage: Stage,
    recipe: Recipe,
    run: RunDir,
    trackers: TrackerSupervisor,
    coordinator: "StageCoordinator | None",
    done: Collection[str],
) -> None:
    """Run a stage unless it is done: at the start if it is a kept one, else now, after the stages before it."""
    if stage.name in done if stage.kept else is_done(stage, recipe, run):
        log(f"{stage.name}: done before")
        return
    (run.stage(stage.name) / MANIFEST).unlink(missing_ok=True)
    began = time.monotonic()
    log(f"{stage.name}: starts")
    trackers.start()
    with ExitStack() as held:
        if coordinator is not None and stage.by_all:
            coordinator.announce(stage.name)
            held.enter_context(coordinator.dump_stacks_on_hang(run.rank_stacks(coordinator.group.rank_info.rank)))
        stage.work(recipe, run)
    log(f"{stage.name}: done in {format_duration(time.monotonic() - began)}")


def _report(run: RunDir) -> None:
    """Write the report if a stage finished after it was written."""
    finished = [path for stage in STAGES if (path := run.stage(stage.name) / MANIFEST).exists()]
    newest = max(path.stat().st_mtime_ns for path in finished)
    if run.report.exists() and run.report.stat().st_mtime_ns >= newest:
        return
    from tunesmith.report.render import write_report

    write_report(run)
    log(f"report: {run.report}")
