"""Submit a run to Slurm: one job for each remaining stage, each starting after the one before."""

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
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, exit_code_path, read_jobs, script_path, write_jobs
from tunesmith.slurm.script import Job, batch_script


def submit_run(opened: OpenedRun, *, until: str | None = None) -> list[Stage]:
    """Write the batch scripts of the remaining stages into the run's folder, submit them, and return the stages.

    Args:
        opened: the run; its recipe's `launch` is for Slurm.
        until: the last stage; default all that the recipe asks for.

    Raises:
        RecipeError: there is no Slurm on this machine, Slurm refuses a job, or the run is already queued.
        DataError: rows on the hub cannot be fetched.
    """
    recipe, run = opened.recipe, opened.run
    client.require_slurm()
    check_prerequisites(recipe, run)
    fetch_inputs(recipe, run)
    pending = _pending_stages(recipe, finished_stages(recipe, run, until), until)
    scripts = batch_scripts(recipe, run, pending)
    refuse_if_queued(read_jobs(run.launch), str(run))  # before anything is written, and again under the lock
    with exclusive_lock(run.launch / "lock"):  # not the run's lock, which the first job may take at once
        refuse_if_queued(read_jobs(run.launch), str(run))
        with exclusive_lock(run.lock):
            opened.write_origin()
        for job, text in scripts:
            write_text(script_path(run, job.stage), text)
            exit_code_path(run, job.stage).unlink(missing_ok=True)
        _submit_chain(run, [job for job, _ in scripts])
    if not pending:
        log("all stages are already done")
    return pending


def fetch_inputs(recipe: Recipe, run: RunDir) -> None:
    """Fetch the weights, and the rows unless they are prepared: the nodes of a cluster may not reach the hub.

    Args:
        run: the recipe's run, which need not exist yet.

    Raises:
        RecipeError: the base cannot be fetched.
        DataError: the rows cannot be fetched.
    """
    resolve_base(run, recipe.model.base)
    if run.manifest(PREPARE.name) is None:
        cache_datasets(all_sources(recipe.data), folder=run.recipe_folder)
    for entry in recipe.evaluate.also:
        if run.further_set(entry.name).manifest(PREPARE.name) is None:
            cache_datasets(entry.source, folder=run.recipe_folder)


def batch_scripts(recipe: Recipe, run: RunDir, stages: Sequence[Stage]) -> list[tuple[Job, str]]:
    """Return the job and the batch script of each stage.

    Raises:
        RecipeError: the recipe does not ask for Slurm, or the path of the run's folder is not allowed in a script.
    """
    folder = os.path.relpath(run.path)  # relative to where jobs are submitted; no file of a run has absolute paths
    jobs = [
        Job(recipe.name, stage.name, f"{stage.command} {folder} --on local", stage.on_all_ranks) for stage in stages
    ]
    return [(job, batch_script(job, recipe.launch, folder)) for job in jobs]


def refuse_if_queued(jobs: Sequence[StageJob], folder: str) -> None:
    """Raise RecipeError if one of the jobs waits or runs."""
    if active := [job for job in jobs if job.state.is_active]:
        problem = f"has jobs that wait or run: {', '.join(f'{job.stage} (job {job.job})' for job in active)}"
        hint = f"tunesmith status {quote(folder)}, or tunesmith cancel {quote(folder)}"
        raise RecipeError(problem, where=folder, hint=hint, code="already-queued")


def cancel_run(run: RunDir) -> list[StageJob]:
    """Cancel a run's jobs and return them. Running jobs save a checkpoint if the cluster gives them time.

    Raises:
        RecipeError: the run was never submitted, or none of its jobs waits or runs.
    """
    jobs = read_jobs(run.launch)
    active = [job for job in jobs if job.state.is_active]
    if not active:
        problem = "has no job that waits or runs" if jobs else "was never submitted to Slurm"
        hint = f"tunesmith status {quote(str(run))} shows its stages"
        raise RecipeError(problem, where=str(run), hint=hint, code="not-queued")
    client.cancel([job.job for job in active])
    return active


def _pending_stages(recipe: Recipe, finished: Sequence[str], until: str | None) -> list[Stage]:
    """Return the first stage that is not finished and all stages after it, up to `until`."""
    stages = wanted_stages(recipe, until)
    return next((stages[index:] for index, stage in enumerate(stages) if stage.name not in finished), [])


def _submit_chain(run: RunDir, jobs: Sequence[Job]) -> None:
    """Submit jobs that wait for each other, and record each at once. If one is refused, cancel those before it."""
    (run.path / "logs").mkdir(exist_ok=True)
    submitted: list[StageJob] = []
    try:
        for job in jobs:
            script = script_path(run, job.stage)
            number = client.submit(script, after=submitted[-1].job if submitted else None)
            submitted.append(StageJob(job.stage, number, job.name))
            write_jobs(run.launch, submitted)
            log(f"{job.stage}: job {number}, {script}")
    except BaseException:
        if submitted:
            client.cancel([job.job for job in submitted])
        raise
