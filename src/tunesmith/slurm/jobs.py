"""The jobs that a run was submitted as, recorded in its folder, and the files of each job."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.slurm.client import JobState, job_state


@dataclass(frozen=True, slots=True)
class StageJob:
    """The job of a stage: its number, and its name in the queue."""

    stage: str
    job: str
    name: str

    @property
    def state(self) -> JobState:
        """The job's state now, from Slurm."""
        return job_state(self.job, self.name)


def script_path(run: RunDir, stage: str) -> Path:
    """Return the batch script of a stage."""
    return run.launch / f"{stage}.sbatch"


def exit_code_path(run: RunDir, stage: str) -> Path:
    """Return the file to which the batch script of a stage writes its exit code."""
    return run.launch / f"{stage}.exit-code"


def log_path(run: RunDir, job: StageJob) -> Path:
    """Return the log with the output of a job."""
    return run.path / "logs" / f"{job.stage}-{job.job}.log"


def read_exit_code(run: RunDir, stage: str) -> int | None:
    """Return the exit code of a stage's job; None while it runs, or if it was killed before it could write one."""
    path = exit_code_path(run, stage)
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def read_jobs(folder: Path) -> list[StageJob]:
    """Return the jobs that a run was last submitted as, in the order of their stages; `folder` is its `launch`."""
    path = folder / "jobs.json"
    return [StageJob(**job) for job in read_json(path)] if path.exists() else []


def write_jobs(folder: Path, jobs: Sequence[StageJob]) -> None:
    """Record the jobs that a run was submitted as."""
    write_json(folder / "jobs.json", [asdict(job) for job in jobs])
