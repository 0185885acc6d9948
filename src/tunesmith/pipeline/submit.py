"""A run as jobs of Slurm: one for each stage that is left, each waiting for the one before."""

import os
from collections.abc import Sequence
from shlex import quote

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_text
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import PREPARE, Stage
from tunesmith.data.sources import cache_datasets
from tunesmith.fetch.reference import resolve_base
from tunesmith.pipeline.runner import check_prerequisites, finished_stages
from tunesmith.pipeline.runs import OpenedRun
from tunesmith.pipeline.stage_state import wanted_stages
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, exit_code_path, read_jobs, script_path, write_jobs
from tunesmith.slurm.script import Job, batch_script


def submit_run(opened: OpenedRun, *, until: str | None = None) -> list[Stage]:
    """Write the scripts of the stages that are left into the run's folder, put them in line, and return them.

    Args:
        opened: the run; `launch` of its recipe is on slurm.
        until: the last stage; default all that the recipe asks for.

    Raises:
        RecipeError: there is no Slurm here, it does not take a job, or the run is in line already.
        DataError: rows on the hub cannot be had.
    """
    loaded, run = opened.recipe, opened.run
    client.require_slurm()
    check_prerequisites(loaded, run)
    fetch_inputs(loaded, run)
    left = _left(loaded, finished_stages(loaded, run, until), until)
    written = batch_scripts(loaded, run, left)
    refuse_if_queued(read_jobs(run.launch), str(run))  # before anything is written, and again under the lock
    with exclusive_lock(run.launch / "lock"):  # the run's own is its first job's, which may begin at once
        refuse_if_queued(read_jobs(run.launch), str(run))
        with exclusive_lock(run.lock):
            opened.write_origin()
        for job, text in written:
            write_text(script_path(run, job.stage), text)
            exit_code_path(run, job.stage).unlink(missing_ok=True)
        _put_in_line(run, [job for job, _ in written])
    if not left:
        log("all stages were done before")
    return left


def fetch_inputs(recipe: Recipe, run: RunDir) -> None:
    """Fetch weights, and rows unless they are prepared: jobs do not ask the hub, which they may be unable to reach.

    Args:
        recipe: whose.
        run: its run, which need not exist yet.

    Raises:
        RecipeError: the model cannot be had.
        DataError: the rows cannot.
    """
    resolve_base(run, recipe.model.base)
    if run.manifest(PREPARE.name) is None:
        cache_datasets(recipe.data.source, folder=run.recipe_folder)


def batch_scripts(recipe: Recipe, run: RunDir, stages: Sequence[Stage]) -> list[tuple[Job, str]]:
    """Return the job of each stage and its batch script.

    Raises:
        RecipeError: the recipe is not to run on Slurm, or the run's folder cannot stand in a script.
    """
    folder = os.path.relpath(run.path)  # from where it is submitted: nothing in the run's folder is absolute
    jobs = [Job(recipe.name, stage.name, f"{stage.verb} {folder} --on local", stage.on_all_ranks) for stage in stages]
    return [(job, batch_script(job, recipe.launch, folder)) for job in jobs]


def refuse_if_queued(jobs: Sequence[StageJob], folder: str) -> None:
    """Raise RecipeError where a job of some waits or runs."""
    if active := [one for one in jobs if one.state.is_active]:
        raise RecipeError(
            f"is in line already: {', '.join(f'{one.stage} (job {one.job})' for one in active)}",
            where=folder, hint=f"tunesmith status {quote(folder)}, or tunesmith cancel {quote(folder)}",
        )  # fmt: skip


def cancel_run(run: RunDir) -> list[StageJob]:
    """Take a run's jobs out of the line and end those that run, which save if the cluster gives them time; return them.

    Raises:
        RecipeError: the run was given to no jobs, or none is left.
    """
    jobs = read_jobs(run.launch)
    active = [one for one in jobs if one.state.is_active]
    if not active:
        raise RecipeError("has no job in line" if jobs else "was never given to Slurm", where=str(run))
    client.cancel([one.job for one in active])
    return active


def _left(recipe: Recipe, done: Sequence[str], until: str | None) -> list[Stage]:
    """Return the stages that are to be done: the first that is not, and all after it."""
    wanted = wanted_stages(recipe, until)
    return next((wanted[number:] for number, stage in enumerate(wanted) if stage.name not in done), [])


def _put_in_line(run: RunDir, jobs: Sequence[Job]) -> None:
    """Submit jobs as a chain, and keep what they are as soon as each is."""
    (run.path / "logs").mkdir(exist_ok=True)
    given: list[StageJob] = []
    try:
        for job in jobs:
            script = script_path(run, job.stage)
            number = client.submit(script, after=given[-1].job if given else None)
            given.append(StageJob(job.stage, number, job.name))
            write_jobs(run.launch, given)
            log(f"{job.stage}: job {number}, {script}")
    except BaseException:
        if given:  # half a run is none
            client.cancel([one.job for one in given])
        raise
