"""Which jobs a run was given to: kept in its folder, for who asks later."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.slurm.client import JobState, job_state


@dataclass(frozen=True, slots=True)
class StageJob:
    """The job of a stage: its number, and the name that it has in the queue."""

    stage: str
    job: str
    name: str

    @property
    def state(self) -> JobState:
        """How it does, as Slurm says now."""
        return job_state(self.job, self.name)


def script_path(run: RunDir, stage: str) -> Path:
    """Return where the script of a stage lies."""
    return run.launch / f"{stage}.sbatch"


def exit_code_path(run: RunDir, stage: str) -> Path:
    """Return where the script of a stage leaves its exit code."""
    return run.launch / f"{stage}.exit-code"


def log_path(run: RunDir, job: StageJob) -> Path:
    """Return what a job has said."""
    return run.path / "logs" / f"{job.stage}-{job.job}.log"


def read_exit_code(run: RunDir, stage: str) -> int | None:
    """Return what a stage's job ended with; None while it has not, or where it was ended before it could say."""
    path = exit_code_path(run, stage)
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def read_jobs(folder: Path) -> list[StageJob]:
    """Return the jobs that a run, whose folder of scripts this is, was last given to, in the order of their stages."""
    path = folder / "jobs.json"
    return [StageJob(**one) for one in read_json(path)] if path.exists() else []


def write_jobs(folder: Path, jobs: Sequence[StageJob]) -> None:
    """Keep which jobs a run was given to."""
    write_json(folder / "jobs.json", [asdict(job) for job in jobs])
