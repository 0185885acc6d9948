"""A ladder as an array of jobs: Slurm runs its rungs side by side, each in a process of its own."""

import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import only_writer, write_text
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.ladder.collect import failure_of
from tunesmith.ladder.rungs import Ladder, Rung, check_ladder, is_ladder, write_ladder
from tunesmith.pipeline.submit import fetch, refuse_active
from tunesmith.recipe.launch import SlurmLaunch, all_processes_of
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, read_jobs, script_path, write_jobs
from tunesmith.slurm.script import Job, script_of


def is_for_slurm(ladder: Ladder, recipe: Path) -> bool:
    """Say whether the recipe of a ladder asks for Slurm.

    Args:
        ladder: whose rungs.
        recipe: the recipe's file, or the ladder's folder.
    """
    found = ladder.recipe(ladder.rungs[0]) if is_ladder(recipe) else load_recipe(recipe, ladder.overrides)
    return isinstance(found.launch, SlurmLaunch)


def submit_ladder(ladder: Ladder, recipe: Path) -> Path:
    """Write a ladder's folder and the script of its rungs, put those that are left in line, and return the folder.

    Args:
        ladder: whose rungs.
        recipe: the recipe's file, or the ladder's folder.

    Raises:
        RecipeError: its recipe is not to run on Slurm, or a rung is to have many processes; Slurm does not take it; or
            it is in line already.
        DataError: rows on the hub cannot be had.
    """
    folder = RunDir(ladder.path)  # as far as jobs go, it is laid out as a run's
    client.require()
    begun = is_ladder(recipe)
    runs = [ladder.run(rung) for rung in ladder.rungs]
    opened = [(load_recipe(run.resolved_recipe), run) for run in runs] if begun else check_ladder(ladder, recipe)
    refuse_active(read_jobs(folder.launch), str(ladder.path))  # before anything is written, and again under the lock
    left = [rung for rung in ladder.rungs if not _is_over(ladder, rung)]
    job, text = _script(ladder, left, opened[0][0])
    for loaded, run in _to_fetch(opened[rung.number - 1] for rung in left):
        fetch(loaded, run)
    with only_writer(ladder.lock):
        refuse_active(read_jobs(folder.launch), str(ladder.path))
        if not begun:
            write_ladder(ladder, recipe)
        if not left:
            say("all rungs were done before")
        else:
            script = script_path(folder, job.stage)
            write_text(script, text)
            number = client.submit(script)
            write_jobs(folder.launch, [StageJob(job.stage, number, job.name)])
            say(f"{len(left)} rungs: job {number}, {script}")
    say(f"to see the results when they are done: tunesmith ladder {quote(str(ladder.path))}")
    return ladder.path


def _is_over(ladder: Ladder, rung: Rung) -> bool:
    run = ladder.run(rung)
    return run.manifest("evaluate") is not None and failure_of(run) is None


def _to_fetch(needed: Iterable[tuple[Recipe, RunDir]]) -> Iterable[tuple[Recipe, RunDir]]:
    """Return a rung for each base and each source of rows that are still to be prepared."""
    found: dict[tuple[str, str], tuple[Recipe, RunDir]] = {}
    for recipe, run in needed:
        source = str(recipe.data.source) if run.manifest("prepare") is None else ""
        found[recipe.model.base, source] = recipe, run
    return found.values()


def _script(ladder: Ladder, left: list[Rung], first: Recipe) -> tuple[Job, str]:
    if (many := all_processes_of(first.launch)) > 1:
        raise RecipeError(
            f"a rung is one process, and `launch` asks for {many}", where=str(ladder.path),
            hint="launch.nodes=1 launch.gpus_per_node=1: Slurm runs the rungs side by side",
        )  # fmt: skip
    folder = os.path.relpath(ladder.path)
    numbers = ",".join(str(rung.number) for rung in left)
    work = f'ladder {folder} --rung "$SLURM_ARRAY_TASK_ID"'
    job = Job(first.name, "rung", work, by_all=True, tasks=numbers)
    return job, script_of(job, first.launch, folder)
