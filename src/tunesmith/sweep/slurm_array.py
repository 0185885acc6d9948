"""Run the trials of a sweep in parallel as a Slurm job array."""

import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_text
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.runs import OpenedRun, open_run
from tunesmith.pipeline.submit import fetch_inputs, refuse_if_queued
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.launch import SlurmLaunch, world_size_of
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, read_jobs, script_path, write_jobs
from tunesmith.slurm.script import Job, batch_script
from tunesmith.sweep.axes import Sweep, Trial, check_sweep, is_sweep, write_sweep
from tunesmith.sweep.collect import failure_of


def is_for_slurm(sweep: Sweep, recipe: Path) -> bool:
    """Return whether the recipe of a sweep asks for Slurm.

    Args:
        sweep: the sweep.
        recipe: the recipe's file, or the sweep's folder.
    """
    loaded = sweep.recipe(sweep.trials[0]) if is_sweep(recipe) else load_recipe(recipe, sweep.overrides)
    return isinstance(loaded.launch, SlurmLaunch)


def submit_sweep(sweep: Sweep, recipe: Path) -> Path:
    """Write a sweep's folder and batch script, submit the trials that are not done, and return the folder.

    Args:
        sweep: the sweep.
        recipe: the recipe's file, or the sweep's folder.

    Raises:
        RecipeError: the recipe does not ask for Slurm, a trial asks for several processes, Slurm refuses the job, or
            the sweep is already queued.
        DataError: rows on the hub cannot be fetched.
    """
    folder = RunDir(sweep.path)  # its jobs and logs are laid out like those of a run
    client.require_slurm()
    is_written = is_sweep(recipe)
    runs = [sweep.run(trial) for trial in sweep.trials]
    opened = [open_run(run.path, (), None) for run in runs] if is_written else check_sweep(sweep, recipe)
    refuse_if_queued(read_jobs(folder.launch), str(sweep.path))  # before anything is written, and again under the lock
    pending = [trial for trial in sweep.trials if not _is_done(sweep, trial)]
    job, text = _script(sweep, pending, opened[0].recipe)
    for needed in _with_distinct_inputs(opened[trial.number - 1] for trial in pending):
        fetch_inputs(needed.recipe, needed.run)
    with exclusive_lock(sweep.lock):
        refuse_if_queued(read_jobs(folder.launch), str(sweep.path))
        if not is_written:
            write_sweep(sweep, recipe)
        if not pending:
            log("all trials are done")
        else:
            script = script_path(folder, job.stage)
            write_text(script, text)
            number = client.submit(script)
            write_jobs(folder.launch, [StageJob(job.stage, number, job.name)])
            log(f"{len(pending)} trials: job {number}, {script}")
    log(f"to see the results, when they are done: tunesmith sweep {quote(str(sweep.path))}")
    return sweep.path


def _is_done(sweep: Sweep, trial: Trial) -> bool:
    run = sweep.run(trial)
    return run.manifest("evaluate") is not None and failure_of(run) is None


def _with_distinct_inputs(trials: Iterable[OpenedRun]) -> Iterable[OpenedRun]:
    """Return one trial for each pair of base and unprepared source."""
    distinct: dict[tuple[str, str], OpenedRun] = {}
    for trial in trials:
        source = str(all_sources(trial.recipe.data)) if trial.run.manifest("prepare") is None else ""
        distinct[trial.recipe.model.base, source] = trial
    return distinct.values()


def _script(sweep: Sweep, pending: list[Trial], first: Recipe) -> tuple[Job, str]:
    """Return the job array of the pending trials and its batch script."""
    if (processes := world_size_of(first.launch)) > 1:
        raise RecipeError(
            f"a trial is one process, but `launch` asks for {processes}", where=str(sweep.path),
            hint="launch.nodes=1 launch.gpus_per_node=1: Slurm runs the trials in parallel", code="trial-processes",
        )  # fmt: skip
    folder = os.path.relpath(sweep.path)
    numbers = ",".join(str(trial.number) for trial in pending)
    command = f'sweep {folder} --trial "$SLURM_ARRAY_TASK_ID"'
    job = Job(first.name, "trial", command, on_all_ranks=True, array=numbers)
    return job, batch_script(job, first.launch, folder)
