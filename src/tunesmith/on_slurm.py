"""A run as jobs of Slurm: one for each stage that is left, each waiting for the one before."""

import os
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import only_writer, write_text
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.launch import slurm
from tunesmith.launch.jobs import StageJob, exit_code_path, read_jobs, script_path, write_jobs
from tunesmith.launch.script import Job, script_of
from tunesmith.pipeline import Stage, check_beforehand, open_run, wanted_stages, write_origin
from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.recipe.schema import Recipe

# The last stage has no verb of its own that takes a run through it: it is what is left of `run`.
_VERBS = {"promote": "run"}


def submit_run(
    recipe: Path | str, overrides: Sequence[str] = (), *, out: Path | str | None = None, until: str | None = None
) -> RunDir:
    """Write the scripts of the stages that are left into the run's folder, and put them in line.

    Args:
        recipe: the recipe's file, or the folder of a run that is to go on; its `launch` is on slurm.
        overrides: `key=value` changes.
        out: the run's folder; default as for `run_recipe`.
        until: the last stage; default all that the recipe asks for.

    Raises:
        RecipeError: the recipe is wrong, there is no Slurm here, it does not take a job, or the run is in line already.
    """
    loaded, run = open_run(Path(recipe), overrides, out)
    if active := [one for one in read_jobs(run) if slurm.state_of(one.job).is_active]:
        raise RecipeError(
            f"is in line already: {', '.join(f'{one.stage} (job {one.job})' for one in active)}",
            where=str(run), hint=f"tunesmith status {run}, or tunesmith cancel {run}",
        )  # fmt: skip
    check_beforehand(loaded, run, Path(recipe))
    with only_writer(run.lock):
        write_origin(loaded, run, Path(recipe))
        left = _left(loaded, run, until)
        for stage, text in scripts(loaded, run, left).items():
            write_text(script_path(run, stage), text)
            exit_code_path(run, stage).unlink(missing_ok=True)
    if left:
        _put_in_line(run, left)
    else:
        say("all stages were done before")
    return run


def scripts(recipe: Recipe, run: RunDir, stages: Sequence[Stage]) -> dict[str, str]:
    """Return the batch script of each stage.

    Raises:
        RecipeError: the recipe is not to run on Slurm, or the run's folder cannot stand in a script.
    """
    launch = recipe.launch
    if not isinstance(launch, SlurmLaunch):
        raise RecipeError(f"is to run on {launch.on}", where="launch.on", hint="--on slurm")
    # From where it is submitted: nothing in the run's folder is absolute.
    folder = os.path.relpath(run.path)
    works = {one: f"{_VERBS.get(one.name, one.name)} {folder} --on local" for one in stages}
    jobs = [Job(recipe.name, one.name, work, one.by_all) for one, work in works.items()]
    return {job.stage: script_of(job, launch, folder) for job in jobs}


def cancel_run(run: RunDir) -> list[StageJob]:
    """Take a run's jobs out of the line and end those that run, which save first; return them.

    Raises:
        RecipeError: the run was given to no jobs, or none is left.
    """
    jobs = read_jobs(run)
    active = [one for one in jobs if slurm.state_of(one.job).is_active]
    if not active:
        raise RecipeError("has no job in line" if jobs else "was never given to Slurm", where=str(run))
    # The last first: the next in line must not begin because the one before it is gone.
    slurm.cancel([one.job for one in reversed(active)])
    return active


def _left(recipe: Recipe, run: RunDir, until: str | None) -> list[Stage]:
    """Return the stages that are to be done: the first that is not, and all after it."""
    wanted = wanted_stages(recipe, until)
    for number, stage in enumerate(wanted):
        manifest = run.manifest(stage.name)
        if manifest is None or manifest["inputs"] != stage.inputs(recipe, run):
            return wanted[number:]
    return []


def _put_in_line(run: RunDir, stages: Sequence[Stage]) -> None:
    (run.path / "logs").mkdir(exist_ok=True)
    jobs: list[StageJob] = []
    try:
        for stage in stages:
            script = script_path(run, stage.name)
            jobs.append(StageJob(stage.name, slurm.submit(script, after=jobs[-1].job if jobs else None)))
            say(f"{stage.name}: job {jobs[-1].job}, {script}")
    except BaseException:
        if jobs:  # half a run is none
            slurm.cancel([one.job for one in reversed(jobs)])
        raise
    write_jobs(run, jobs)
