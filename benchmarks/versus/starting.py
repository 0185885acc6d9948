"""The time until help, a plan and the first step."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.versus.entries import Entry, skipped, timed
from benchmarks.versus.jobs import Job, make_job
from benchmarks.versus.measure import environment_of_ours, environment_of_peers, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import rows_of
from benchmarks.versus.settings import System, peers

from tunesmith.core.rundir import RunDir

_SECONDS = 120.0


def starting(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure short commands, and runs until the end of their first step."""
    rows = rows_of("viggo", 40)
    folder = plan.scratch / "start"
    job = make_job(folder, rows.rows, steps=1, examples_per_step=8, gpu=plan.gpu)
    recipe = folder / "recipe.yaml"
    ours = [sys.executable, "-m", "tunesmith"]
    quick = {("tunesmith", "--help"): [*ours, "--help"], ("tunesmith", "plan"): [*ours, "plan", str(recipe)]}
    slow: dict[tuple[str, str], System | None] = {("tunesmith", "run, to the first step"): None}
    if plan.peers:
        quick["trl", "sft --help"] = [str(plan.peers.parent / "trl"), "sft", "--help"]
        for system in peers(gpu=plan.gpu, bf16=plan.bf16, full=False, quick=True):
            slow[system.name, "script, to the first step"] = system
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in (*quick, *slow)}
    errors: dict[tuple[str, str], str] = {}
    for repeat in range(plan.repeats):
        for key, command in quick.items():
            _note(seconds, errors, key, _answer(command, folder, key[0] == "tunesmith"))
        for key, system in slow.items():
            _note(seconds, errors, key, _first_step(job, system, folder, repeat, plan))
            say(f"{' '.join(key)}: {errors.get(key) or f'{seconds[key][-1]:.2f} s'}")
    made = [
        timed("start", system, what, seconds[system, what], **({"error": error} if error else {}))
        for system, what in seconds
        for error in [errors.get((system, what))]
    ]
    return made if plan.peers else [*made, skipped("start", "peers", plan.no_peers or "no environment of peers")]


def _note(
    seconds: dict[tuple[str, str], list[float]],
    errors: dict[tuple[str, str], str],
    key: tuple[str, str],
    outcome: float | str,
) -> None:
    if isinstance(outcome, str):
        errors[key] = outcome
    else:
        seconds[key].append(outcome)


def _answer(command: list[str], folder: Path, is_ours: bool) -> float | str:
    """Return the seconds of a command, or its error."""
    environment = environment_of_ours(folder) if is_ours else environment_of_peers(folder)
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=folder, timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    return seconds if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"


def _first_step(job: Job, system: System | None, folder: Path, repeat: int, plan: Plan) -> float | str:
    """Return the seconds from the start of a process, with unprepared data, to the end of its first step."""
    if system is None:
        run = folder / f"whole-{repeat}"
        request = {"arguments": ["run", str(folder / "recipe.yaml"), "--out", str(run)]}
        log, python, worker = RunDir(run).metrics, None, "ours_command.py"
    else:
        request, log, worker = job.for_peer(system, 1), None, system.worker
        python = plan.python_of(system.family)
    place = folder / f"{repeat}-{system.name if system else 'tunesmith'}"
    measured = measure(
        worker, request, place, python=python, log=log, limit_seconds=plan.tried_seconds, first_step_only=True
    )
    return measured.first_step_seconds if measured.first_step_seconds is not None else measured.error or "no step"
