"""How a run does: each stage, how far training and evaluation are, and what its jobs wait for. Read from its files."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile, Interrupted
from tunesmith.core.locks import lock_holder
from tunesmith.core.progress import format_duration
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import Stage, stage_named
from tunesmith.pipeline.stage_state import wanted_stages
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, log_path, read_exit_code, read_jobs

# The speed that time left is told from is that of so many last steps.
_STEPS = 20
_LOG_LINES = 4
# How many bytes at the end of a log are read: watching must not read hours of it at every look.
_METRICS_READ, _LOG_READ = 1 << 20, 1 << 13


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How a stage does: `done`, `to do`, `working`, `waiting` for its turn, `stopped` resumably, `failed`, `cancelled`.

    `unknown`, if only Slurm knows and cannot be asked here.

    `job` and what follows are those of a job of Slurm: its number, why it waits, on which machines it runs, for how
    long ("1-02:03:04"), how often it was started again. `done_of` is (done, all) in steps or answers, `seconds_left` an
    estimate from the speed of late.
    """

    stage: str
    state: str
    job: str | None = None
    reason: str = ""
    nodes: str = ""
    running: str = ""
    restarts: int = 0
    limit_seconds: float | None = None
    exit_code: int | None = None
    done_of: tuple[int, int] | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    log: str | None = None

    def __str__(self) -> str:
        parts = [
            self.state + (f" with {self.exit_code}" if self.state in ("failed", "stopped") and self.exit_code else "")
        ]
        if self.job and self.state != "done":
            parts[0] += f", job {self.job}"
        if self.reason:
            parts.append(f"({self.reason})")
        if self.nodes and self.state == "working":
            parts.append(f"on {self.nodes} for {self.running}")
        if self.restarts:
            parts.append(f"started again {self.restarts} x")
        if self.done_of and self.state != "done":
            parts.append(f"{stage_named(self.stage).unit} {self.done_of[0]} of {self.done_of[1]}")
        if self.tokens_per_second and self.state == "working":
            parts.append(f"loss {self.loss:.4f}, {self.tokens_per_second:.0f} tokens/s")
        if self.seconds_left and self.state == "working":
            parts.append(f"{format_duration(self.seconds_left)} left")
        if self.limit_seconds is not None and self.state == "working":
            parts.append(f"{format_duration(self.limit_seconds)} to the time limit")
        return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run does. `writer` is the process that works at it."""

    run: str
    stages: tuple[StageStatus, ...]
    last_lines: tuple[str, ...] = ()
    writer: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether anything of it waits or works."""
        return any(one.state in ("working", "waiting") for one in self.stages)

    @property
    def first_failure(self) -> StageStatus | None:
        """The first stage that failed, was stopped or was cancelled."""
        bad = ("failed", "stopped", "cancelled")
        return next((one for one in self.stages if one.state in bad), None)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"run       {self.run}" + (f"  ({self.writer} works at it)" if self.writer else "")]
        lines += [f"{one.stage:9} {one}" for one in self.stages]
        return "\n".join([*lines, *(f"          | {line}" for line in self.last_lines)])


def status_of(run: RunDir) -> RunStatus:
    """Return how a run does.

    Raises:
        TunesmithError: Slurm does not answer.
    """
    recipe = load_recipe(run.resolved_recipe)
    jobs = {one.stage: one for one in read_jobs(run.launch)}
    writer = lock_holder(run.lock)
    stages: list[StageStatus] = []
    for stage in wanted_stages(recipe):
        begun = not stages or stages[-1].state == "done"
        stages.append(_stage(recipe, run, stage, jobs.get(stage.name), begun=begun, writer=writer))
    told = next((one for one in stages if one.log and one.state not in ("done", "waiting")), None)
    lines = _last_lines(Path(told.log), ended=told.state != "working") if told and told.log else ()
    return RunStatus(str(run), tuple(stages), lines, writer)


def _stage(
    recipe: Recipe, run: RunDir, stage: Stage, job: StageJob | None, *, begun: bool, writer: str | None
) -> StageStatus:
    name, facts = stage.name, _PROGRESS[stage.unit](recipe, run) if stage.unit and begun else {}
    found = _asked(job) if job is not None else None
    if job is not None:
        log = log_path(run, job)
        facts |= {"job": job.job, "log": str(log) if log.exists() else None}
    if found is not None and found.is_active:
        limit = (found.ends - datetime.now()).total_seconds() if found.ends and found.state == "RUNNING" else None
        facts |= {"nodes": found.nodes, "running": found.run_time, "limit_seconds": limit and max(0.0, limit)}
        state = "waiting" if found.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD") else "working"
        return StageStatus(name, state, reason=found.reason, restarts=found.restarts, **facts)
    # Looked for after the job, which may end between; of another machine's files we may not know yet.
    if run.manifest(name) or (found is not None and found.state == "COMPLETED"):
        return StageStatus(name, "done", **facts)
    if begun and writer:
        return StageStatus(name, "working", **facts)
    if found is None:
        return StageStatus(name, "to do", **facts)
    code = found.exit_code if found.state != client.GONE else read_exit_code(run, name)
    return StageStatus(name, _ended(found, code), exit_code=code, **facts)


def _asked(job: StageJob) -> client.JobState:
    """Return how a job does; nothing is known of it where there is no Slurm to ask."""
    return job.state if client.is_available() else client.JobState(client.GONE)


def _ended(job: client.JobState, code: int | None) -> str:
    """Return the state of a stage that is not done and whose job is over."""
    if job.state == "CANCELLED":
        return "cancelled"
    if code == Interrupted.exit_code or job.state in ("TIMEOUT", "PREEMPTED", "NODE_FAIL"):
        return "stopped"
    return "failed" if code is not None or client.is_available() else "unknown"


def _training(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    prepared = run.manifest("prepare")
    if prepared is None or not run.metrics.exists():
        return {}
    # The last line may be in the making, and the first is not whole where the log is longer than what is read.
    try:
        lines = [json.loads(line) for line in _end_of(run.metrics, _METRICS_READ).split("\n")[1:-1]]
    except ValueError as error:
        raise DamagedFile("a line is not whole", where=str(run.metrics)) from error
    steps = [line for line in lines if line["kind"] == "step"]
    total = plan_steps(recipe, prepared["counts"]["train"]).total_steps
    if not steps:
        return {"done_of": (0, total)}
    late = steps[-_STEPS:]
    seconds = sum(line["seconds"] for line in late)
    return {
        "done_of": (steps[-1]["step"], total),
        "loss": steps[-1]["loss"],
        "tokens_per_second": round(sum(line["tokens"] for line in late) / max(seconds, 1e-9), 1),
        "seconds_left": round(seconds / len(late) * (total - steps[-1]["step"]), 1),
    }


def _evaluation(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    prepared = run.manifest("prepare") or {}
    rows = min(recipe.evaluate.rows, prepared.get("counts", {}).get("test", recipe.evaluate.rows))
    answered = [path for name in ("base", "tuned") for path in run.evaluation(name).glob("generations*.jsonl")]
    return {"done_of": (sum(path.read_bytes().count(b"\n") for path in answered), 2 * rows)} if answered else {}


_PROGRESS = {"step": _training, "answer": _evaluation}  # by the unit of a stage


def _last_lines(log: Path, *, ended: bool) -> tuple[str, ...]:
    """Return the end of a log; of one that ended, its last error, which the launchers' words on it would hide."""
    lines = [line for line in _end_of(log, _LOG_READ).splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not (ended and errors):
        return tuple(lines[-_LOG_LINES:])
    return (lines[errors[-1]], *(line for line in lines[errors[-1] + 1 :][:1] if line.startswith("  hint: ")))


def _end_of(path: Path, size: int) -> str:
    """Return so many bytes at the end of a file, or all of a shorter one behind a line break.

    So what stands before the first line break is never a whole line.
    """
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - size)
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    return text if start else f"\n{text}"
