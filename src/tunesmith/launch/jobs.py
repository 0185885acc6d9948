"""Which jobs a run was given to: kept in its folder, for who asks later."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir


@dataclass(frozen=True, slots=True)
class StageJob:
    """The job of a stage."""

    stage: str
    job: str


def script_path(run: RunDir, stage: str) -> Path:
    """Return where the script of a stage lies."""
    return run.launch / f"{stage}.sbatch"


def exit_code_path(run: RunDir, stage: str) -> Path:
    """Return where the script of a stage leaves its exit code."""
    return run.launch / f"{stage}.exit-code"


def log_path(run: RunDir, job: StageJob) -> Path:
    """Return what a job has said."""
    return run.path / "logs" / f"{job.stage}-{job.job}.log"


def exit_code(run: RunDir, stage: str) -> int | None:
    """Return what a stage's job ended with; None while it has not, or where it was ended before it could say."""
    path = exit_code_path(run, stage)
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def read_jobs(run: RunDir) -> list[StageJob]:
    """Return the jobs that a run was last given to, in the order of their stages."""
    path = run.launch / "jobs.json"
    return [StageJob(**one) for one in read_json(path)] if path.exists() else []


def write_jobs(run: RunDir, jobs: list[StageJob]) -> None:
    """Keep which jobs a run was given to."""
    write_json(run.launch / "jobs.json", [asdict(job) for job in jobs])
