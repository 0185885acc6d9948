"""Run a recipe's stages. Finished stages are skipped, and an interrupted one is resumed."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core import interrupt
from tunesmith.core.dist_env import rank_info
from tunesmith.core.files import MANIFEST, remove_leftovers
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import format_duration, log
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import EVALUATE, EXPORT, PROMOTE, STAGES, TRAIN, Stage, stage_named
from tunesmith.core.user_folders import cache_root, check_writable, registry_root
from tunesmith.data.recipe_files import copy_recipe_files
from tunesmith.evaluate.harness_process import check_tasks
from tunesmith.export.requests import check_requests
from tunesmith.pipeline.environment import write_environment
from tunesmith.pipeline.runs import OpenedRun, find_run_elsewhere, open_run
from tunesmith.pipeline.stage_state import changed_inputs, is_done, run_stage, stage_inputs, wanted_stages
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import custom_metrics
from tunesmith.track.supervisor import TrackerSupervisor
from tunesmith.track.tracker import check_installed

if TYPE_CHECKING:
    from tunesmith.distributed.process_group import StageCoordinator


def run_recipe(
    recipe: Path | str, overrides: Sequence[str] = (), *, out: Path | str | None = None, until: str | None = None
) -> RunDir:
    """Run a recipe's stages; skip finished ones, and resume an interrupted one.

    The recipe's `launch` section has no effect: the stages run in this process, or in all processes that torchrun,
    accelerate or srun have started.

    Args:
        recipe: the recipe's file, or the folder of a run to resume.
        overrides: `key=value` changes.
        out: the run's folder; default `runs/NAME/ID`, where ID follows from the recipe.
        until: the last stage to run; default all that the recipe asks for.

    Raises:
        TunesmithError: a stage failed or was refused; the error's `exit_code` is that of the command.
    """
    return run_opened(open_run(Path(recipe), overrides, out), until=until)


def run_opened(opened: OpenedRun, *, until: str | None = None) -> RunDir:
    """Run the stages of an opened run, as `run_recipe` does."""
    info = rank_info()
    if info.world_size == 1:
        return _run_stages(opened, until, None)
    from tunesmith.distributed.process_group import join_process_group

    with join_process_group(info, opened.recipe.launch.timeout_minutes) as coordinator:
        if not info.is_rank0:
            _follow_rank0(opened, coordinator)
            return opened.run
        try:
            return _run_stages(opened, until, coordinator)
        finally:
            coordinator.announce("")


def _run_stages(opened: OpenedRun, until: str | None, coordinator: "StageCoordinator | None") -> RunDir:
    """Run the stages as rank 0; without a coordinator, this process is alone."""
    recipe, run = opened.recipe, opened.run
    check_prerequisites(recipe, run, until)
    finished = finished_stages(recipe, run, until)
    if elsewhere := find_run_elsewhere(opened):
        log(f"starting a new run in {run}; to continue the existing one: tunesmith run {elsewhere}")
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(run.lock))
        stack.enter_context(interrupt.catch_signals(patient=coordinator is not None))
        opened.write_origin()
        copy_recipe_files(recipe, run)
        write_environment(run)
        remove_leftovers(run.path)
        trackers = stack.enter_context(TrackerSupervisor(recipe.trackers, run, recipe.model_dump(mode="json")))
        for stage in wanted_stages(recipe, until):
            # Stages whose result is replaced are checked only now: those before them may have changed their inputs.
            if stage.name in finished if stage.keeps_result else is_done(stage, recipe, run):
                log(f"{stage.name}: already done")
            else:
                _run_as_rank0(stage, opened, trackers, coordinator)
            if stage.is_reported:  # also before `promote`, which the verdict may refuse
                _update_report(run)
    return run


def check_prerequisites(recipe: Recipe, run: RunDir, until: str | None = None) -> None:
    """Raise RecipeError if a folder cannot be written, a tracker is missing, or a metric or an export is wrong."""
    promotes = PROMOTE in wanted_stages(recipe, until) and changed_inputs(PROMOTE, recipe, run) != []
    check_writable(cache_root(), *([registry_root()] if promotes else []))
    check_writable(run.path, hint="name a folder that you may write to with --out")
    check_installed(recipe.trackers, recipe.promote.mirror if recipe.promote else None)
    if changed_inputs(EVALUATE, recipe, run) != []:
        custom_metrics((*recipe.evaluate.all_metrics, *recipe.train.valid_metrics), run.recipe_folder)
        check_tasks(recipe, run)
    if EXPORT in wanted_stages(recipe, until) and changed_inputs(EXPORT, recipe, run) != []:
        check_requests(recipe, run)


def finished_stages(recipe: Recipe, run: RunDir, until: str | None = None) -> list[str]:
    """Return the names of the stages that need not run. Writes nothing, so a refused run is left unchanged.

    Raises:
        RecipeError: the run was made from other inputs, or the base does not exist.
        DataError: the data or the database does not exist.
    """
    stages = wanted_stages(recipe, until)
    for stage in stages:
        if stage.reads_outside and run.manifest(stage.name) is None:
            stage_inputs(stage, recipe, run)
    return [stage.name for stage in stages if is_done(stage, recipe, run)]


def _check_prompts(recipe: Recipe, run: RunDir) -> None:
    """Warn of prepared rows that cannot be answered or scored; raise RecipeError if no verdict would be possible."""
    from tunesmith.pipeline.checks import check_prepared_prompts  # slow to import, and most commands do not train

    for warning in check_prepared_prompts(recipe, run):
        log(f"warning: {warning}")


def _follow_rank0(opened: OpenedRun, coordinator: "StageCoordinator") -> None:
    """Run the stages that rank 0 announces, and write nothing but a log."""
    run, rank = opened.run, coordinator.group.rank_info.rank
    with ExitStack() as stack:
        stack.enter_context(interrupt.catch_signals(patient=True))
        while name := coordinator.next_stage():
            # Opened only now, because rank 0 creates the run's folder.
            file = stack.enter_context(run.rank_log(rank).open("a", encoding="utf-8"))
            with redirect_stderr(file), coordinator.dump_stacks_on_hang(run.rank_stacks(rank)):
                run_stage(stage_named(name), opened.recipe, run)


def _run_as_rank0(
    stage: Stage, opened: OpenedRun, trackers: TrackerSupervisor, coordinator: "StageCoordinator | None"
) -> None:
    """Run a stage as rank 0, with the other ranks if it is for all of them."""
    recipe, run = opened.recipe, opened.run
    if stage is TRAIN:
        _check_prompts(recipe, run)
    (run.stage(stage.name) / MANIFEST).unlink(missing_ok=True)
    began = time.monotonic()
    log(f"{stage.name}: starts")
    trackers.start()
    with ExitStack() as stack:
        if coordinator is not None and stage.on_all_ranks:
            coordinator.announce(stage.name)
            stack.enter_context(coordinator.dump_stacks_on_hang(run.rank_stacks(coordinator.group.rank_info.rank)))
        run_stage(stage, recipe, run)
    log(f"{stage.name}: done in {format_duration(time.monotonic() - began)}")


def _update_report(run: RunDir) -> None:
    """Write the report if a stage finished after it was written."""
    manifests = [path for stage in STAGES if (path := run.stage(stage.name) / MANIFEST).exists()]
    newest = max(path.stat().st_mtime_ns for path in manifests)
    if run.report.exists() and run.report.stat().st_mtime_ns >= newest:
        return
    from tunesmith.report.render import write_report

    write_report(run)
    log(f"report: {run.report}")
