"""Slurm's own commands: put a job in line, ask how it does, take it out."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tunesmith.core.errors import RecipeError, TunesmithError

# A controller that is busy answers late; one that is gone never does.
_SECONDS_ASKING = 60
# What a job that is over may be, by `man squeue`, "JOB STATE CODES"; in all others it waits or runs.
_OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
GONE = "GONE"
# What its commands say where the controller cannot be reached, or none was ever set up.
_SILENT = re.compile(
    "Unable to contact|timed out|resolve_ctls|establish a configuration|fetch_config|Unable to process configuration"
)


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job does. `state` is Slurm's word, GONE where Slurm has forgotten it; `reason` is why it waits.

    `run_time` is as Slurm writes it (1-02:03:04); `exit_code` is 128 and more for a signal, as in a shell.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    run_time: str = ""
    ends: datetime | None = None
    restarts: int = 0
    exit_code: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in (*_OVER, GONE)


def is_available() -> bool:
    """Return whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    """Raise RecipeError if jobs cannot be submitted from this machine."""
    if not is_available():
        raise _no_slurm("sbatch")


def submit(script: Path, *, after: str | None = None) -> str:
    """Put a job in line, to begin when the job `after` is done; return its number.

    Raises:
        RecipeError: there is no Slurm here, or it does not take the job.
    """
    # A job whose predecessor fails would wait for ever.
    chain = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    said = _call(["sbatch", "--parsable", *chain, str(script)], refused=str(script))
    number = re.search(r"^\d+", said, re.MULTILINE)  # a site may greet before it answers
    if number is None:
        raise TunesmithError(f"sbatch gave no number: {said.strip()!a}", where=str(script))
    return number[0]


def estimate_start(script: str) -> str:
    """Return what Slurm says of a job of which it is only asked: when it would begin, or that it does not answer.

    Args:
        script: its text.

    Raises:
        RecipeError: it would not take the job.
    """
    try:
        said = _call(["sbatch", "--test-only"], given=script, refused="launch").strip()
    except RecipeError:
        raise
    except TunesmithError as error:
        return error.message
    return f"would begin it {said.partition('to start ')[2].partition(' using')[0] or said}"


def job_state(job: str, name: str) -> JobState:
    """Return how a job does; Slurm forgets ended ones after some minutes (its `MinJobAge`).

    Args:
        job: its number.
        name: its name: numbers begin anew, and another cluster has its own.
    """
    try:
        said = _call(["scontrol", "--oneliner", "show", "job", job])
    except TunesmithError as error:
        if "Invalid job id" in error.message:
            return JobState(GONE)
        raise
    found = [one for line in said.splitlines() if (one := _facts(line)).get("JobName") == name]
    if not found:
        return JobState(GONE)
    states = [_state(one) for one in found]  # of an array, one for each task
    return next((one for one in states if one.is_active), states[0])


def _facts(line: str) -> dict[str, str]:
    told: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", line):
        told.setdefault(name, value)  # a path further on may hold a blank and a `=`
    return told


def _state(told: dict[str, str]) -> JobState:
    ends, (code, _, signal) = told.get("EndTime", ""), told.get("ExitCode", "").partition(":")
    return JobState(
        told.get("JobState", GONE),
        "" if told.get("Reason") == "None" else told.get("Reason", ""),
        "" if told.get("NodeList") == "(null)" else told.get("NodeList", ""),
        told.get("RunTime", ""),
        datetime.fromisoformat(ends) if re.fullmatch(r"\d{4}-.*", ends) else None,
        int(told.get("Restarts", 0)),
        None if not code.isdigit() else 128 + int(signal) if signal not in ("", "0") else int(code),
    )


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the line, and end those that run."""
    _call(["scancel", *jobs])


def _no_slurm(command: str) -> RecipeError:
    return RecipeError(
        f"there is no Slurm here: no command `{command}`",
        hint="run this where jobs are submitted, such as a login node, or here with --on local",
    )


def _call(command: list[str], *, given: str = "", refused: str | None = None) -> str:
    """Return what a command of Slurm says; where it fails, raise what it said, as RecipeError of `refused` if given.

    Args:
        command: its words.
        given: its standard input.
        refused: what the recipe is to blame for.
    """
    # A job sees the environment of who puts it in line: `python` is then the one that we run on. What an outer job has
    # told us about itself is not true of this one.
    environment = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name[:6] != "SLURM_"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS_ASKING,
        )
    except FileNotFoundError:
        raise _no_slurm(command[0]) from None
    except subprocess.TimeoutExpired:
        raise TunesmithError(f"Slurm does not answer: `{command[0]}` took more than {_SECONDS_ASKING} s") from None
    if done.returncode == 0:
        return done.stdout or done.stderr  # --test-only speaks on stderr
    said = re.sub(rf"^{command[0]}: (error: )?", "", done.stderr.strip(), flags=re.MULTILINE) or f"{command[0]} failed"
    if refused is not None and not _SILENT.search(said):
        raise RecipeError(
            f"Slurm does not take it: {said}", where=refused, hint="the recipe's `launch` says what to ask for"
        )
    raise TunesmithError(f"{command[0]}: {said}")
