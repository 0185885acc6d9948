"""Slurm's commands: submit, query and cancel jobs."""

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

_TIMEOUT = 60  # seconds; a busy controller answers late; one that is down never answers
# States of jobs that have ended, from `man squeue`, "JOB STATE CODES". In all other states a job waits or runs.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
GONE = "GONE"
# Messages of Slurm's commands if the controller cannot be reached or none was set up.
_UNREACHABLE = re.compile(
    "Unable to contact|timed out|resolve_ctls|establish a configuration|fetch_config|Unable to process configuration"
)


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of a job.

    Attributes:
        state: Slurm's word for it; GONE if Slurm no longer knows the job.
        reason: why the job waits.
        run_time: as Slurm writes it (1-02:03:04).
        end_time: when a running job reaches its time limit, or when an ended job ended.
        restarts: how often the job was requeued.
        exit_code: as in a shell, 128 plus the signal for a job that was killed.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    run_time: str = ""
    end_time: datetime | None = None
    restarts: int = 0
    exit_code: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state not in (*_ENDED, GONE)


def is_available() -> bool:
    """Return whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require_slurm(command: str = "sbatch") -> None:
    """Raise RecipeError if this machine lacks one of Slurm's commands; without sbatch, jobs cannot be submitted."""
    if shutil.which(command) is None:
        message = f"Slurm is not installed on this machine: there is no command `{command}`"
        hint = "run this on a machine that jobs are submitted from, such as a login node, or here with --on local"
        raise RecipeError(message, hint=hint, code="no-slurm")


def submit(script: Path, *, after: str | None = None) -> str:
    """Submit a batch script and return the job's number.

    Args:
        after: the number of a job that must succeed first.

    Raises:
        RecipeError: there is no Slurm on this machine, or it refuses the job.
    """
    # Without the second option a job would wait for ever if the job before it fails.
    chain = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    output = _run_command(["sbatch", "--parsable", *chain, str(script)], refused_where=str(script)).strip()
    number = re.search(r"^\d+", output, re.MULTILINE)  # a cluster may print a greeting first
    if number is None:
        hint, where = "squeue --me shows whether the job is queued", str(script)
        raise TunesmithError(f"sbatch printed no job number: {output!a}", where=where, hint=hint, code="slurm-failed")
    return number[0]


def estimate_start(script: str) -> str:
    """Ask Slurm when it would start a job, without submitting it; return the answer, or that Slurm does not answer.

    Args:
        script: the text of the batch script.

    Raises:
        RecipeError: Slurm would refuse the job.
    """
    try:
        output = _run_command(["sbatch", "--test-only"], stdin=script, refused_where="launch").strip()
    except RecipeError:
        raise
    except TunesmithError as error:
        return error.message
    return f"would start it {output.partition('to start ')[2].partition(' using')[0] or output}"


def job_state(job: str, name: str) -> JobState:
    """Return the state of a job. Slurm forgets jobs some minutes after they end (its `MinJobAge`).

    Args:
        job: the job's number.
        name: the job's name, which must match: numbers start again after a reset, and each cluster has its own.
    """
    try:
        output = _run_command(["scontrol", "--oneliner", "show", "job", job])
    except TunesmithError as error:
        if "Invalid job id" in error.message:
            return JobState(GONE)
        raise
    tasks = [fields for line in output.splitlines() if (fields := _parse_fields(line)).get("JobName") == name]
    states = [_parse_state(fields) for fields in tasks] or [JobState(GONE)]  # an array has one for each task
    return next((state for state in states if state.is_active), states[0])


def _parse_fields(line: str) -> dict[str, str]:
    """Return the `Name=value` fields of a line of scontrol that have a value."""
    pairs = [pair for pair in re.findall(r"(\w+)=(\S*)", line) if pair[1] not in ("None", "(null)")]
    return dict(reversed(pairs))  # the first of equal names counts: a path at the end may contain a space and a `=`


def _parse_state(fields: dict[str, str]) -> JobState:
    names = ("Reason", "NodeList", "RunTime", "EndTime", "ExitCode")
    reason, nodes, run_time, end_time, status = (fields.get(name, "") for name in names)
    state, restarts = fields.get("JobState", GONE), int(fields.get("Restarts", 0))
    end = datetime.fromisoformat(end_time) if re.fullmatch(r"\d{4}-.*", end_time) else None
    code, _, signal = status.partition(":")
    exit_code = None if not code.isdigit() else 128 + int(signal) if signal not in ("", "0") else int(code)
    return JobState(state, reason, nodes, run_time, end, restarts, exit_code)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs by number, waiting or running."""
    _run_command(["scancel", *jobs])


def _run_command(command: list[str], *, stdin: str = "", refused_where: str | None = None) -> str:
    """Run one of Slurm's commands and return its output.

    Args:
        refused_where: the location in the error if Slurm refuses the request.

    Raises:
        RecipeError: the command does not exist, or Slurm refuses and `refused_where` is given.
        TunesmithError: Slurm does not answer, or the command fails.
    """
    require_slurm(command[0])
    # A job gets the environment of the process that submits it, so its `python` must be ours. The variables of a job
    # that we may be in are left out, because they describe that job.
    env = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name[:6] != "SLURM_"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        done = subprocess.run(
            command, env=env, input=stdin, capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        message = f"Slurm does not answer: `{command[0]}` took more than {_TIMEOUT} s"
        raise TunesmithError(message, code="slurm-failed") from None
    if done.returncode == 0:
        return done.stdout or done.stderr  # `sbatch --test-only` writes to stderr
    output = re.sub(rf"^{command[0]}: (error: )?", "", done.stderr.strip(), flags=re.MULTILINE)
    output = output or f"{command[0]} failed"
    if refused_where is not None and not _UNREACHABLE.search(output):
        message, hint = f"Slurm refuses the job: {output}", "change what the recipe's `launch` asks for"
        raise RecipeError(message, where=refused_where, hint=hint, code="slurm-refused")
    raise TunesmithError(f"{command[0]}: {output}", code="slurm-failed")
