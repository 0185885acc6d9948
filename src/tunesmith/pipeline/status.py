"""The status of a run: the state and progress of each stage, read from the run's files and from Slurm."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile, Interrupted
from tunesmith.core.locks import lock_holder
from tunesmith.core.progress import format_duration
from tunesmith.core.rundir import RunDir, seed_name
from tunesmith.core.stages import REPLICATE, Stage, stage_named
from tunesmith.pipeline.stage_state import wanted_stages
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm import client
from tunesmith.slurm.jobs import StageJob, log_path, read_exit_code, read_jobs

_SPEED_STEPS = 20  # the remaining time is estimated from the speed of this many steps
_LOG_LINES = 4
# Bytes read from the end of a log, so that a long log is not read whole at every poll.
_METRICS_TAIL, _LOG_TAIL = 1 << 20, 1 << 13


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state and progress of a stage.

    Attributes:
        state: `done`, `to do`, `working`, `waiting` (queued), `stopped` (can be resumed), `failed`, `cancelled`, or
            `unknown` if only Slurm knows and cannot be asked on this machine.
        job: the number of its Slurm job.
        reason: why the job waits.
        nodes: the machines on which the job runs.
        running: for how long the job has been running, as Slurm writes it (1-02:03:04).
        restarts: how often Slurm has requeued the job.
        limit_seconds: the time until the job's time limit.
        done_of: steps or answers, as (finished, all).
        seconds_left: an estimate from the speed of the last steps.
        log: the path of the job's log.
        stopped_early: why training ended before its last step.
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
    stopped_early: str | None = None

    def __str__(self) -> str:
        works, is_done = self.state == "working", self.state == "done"
        with_code = f" with {self.exit_code}" if self.state in ("failed", "stopped") and self.exit_code else ""
        done, total = self.done_of or (0, 0)
        parts = (
            self.state + with_code + (f", job {self.job}" if self.job and not is_done else ""),
            f"({self.reason})" if self.reason else "",
            f"on {self.nodes} for {self.running}" if self.nodes and works else "",
            f"requeued {self.restarts} x" if self.restarts else "",
            f"{stage_named(self.stage).unit} {done} of {total}" if self.done_of and not is_done else "",
            f"(stopped early at {done} of {total}: {self.stopped_early})" if self.stopped_early and is_done else "",
            f"loss {self.loss:.4f}, {self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second and works else "",
            f"{format_duration(self.seconds_left)} left" if self.seconds_left and works else "",
            f"{format_duration(self.limit_seconds)} to the time limit"
            if self.limit_seconds is not None and works
            else "",
        )
        return "  ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run.

    Attributes:
        last_lines: the end of the log of the stage that works or has failed.
        writer: the process that holds the run's lock, as `pid 123 on its-machine`.
    """

    run: str
    stages: tuple[StageStatus, ...]
    last_lines: tuple[str, ...]
    writer: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether a stage is working or waiting."""
        return any(stage.state in ("working", "waiting") for stage in self.stages)

    @property
    def first_failure(self) -> StageStatus | None:
        """The first stage that failed, was stopped or was cancelled."""
        return next((stage for stage in self.stages if stage.state in ("failed", "stopped", "cancelled")), None)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"run       {self.run}" + (f"  (locked by {self.writer})" if self.writer else "")]
        lines += [f"{stage.stage:9} {stage}" for stage in self.stages]
        return "\n".join([*lines, *(f"          | {line}" for line in self.last_lines)])


def status_of(run: RunDir) -> RunStatus:
    """Return the status of a run. Writes nothing.

    Raises:
        TunesmithError: Slurm does not answer.
    """
    recipe = load_recipe(run.resolved_recipe)
    jobs = {job.stage: job for job in read_jobs(run.launch)}
    writer = lock_holder(run.lock)
    stages: list[StageStatus] = []
    for stage in wanted_stages(recipe):
        is_next = not stages or stages[-1].state == "done"
        stages.append(_stage_status(recipe, run, stage, jobs.get(stage.name), is_next=is_next, writer=writer))
    shown = next((stage for stage in stages if stage.log and stage.state not in ("done", "waiting")), None)
    lines = _log_excerpt(Path(shown.log), ended=shown.state != "working") if shown and shown.log else ()
    return RunStatus(str(run), tuple(stages), lines, writer)


def _stage_status(
    recipe: Recipe, run: RunDir, stage: Stage, job: StageJob | None, *, is_next: bool, writer: str | None
) -> StageStatus:
    """Return the status of a stage; `is_next` says that all stages before it are done."""
    name, facts = stage.name, _progress(stage, recipe, run) if is_next else {}
    state = None
    if job is not None:
        state = job.state if client.is_available() else client.JobState(client.GONE)
        log = log_path(run, job)
        facts |= {"job": job.job, "log": str(log) if log.exists() else None}
    if state is not None and state.is_active:
        end_time = state.end_time if state.state == "RUNNING" else None
        limit = (end_time - datetime.now()).total_seconds() if end_time else None
        facts |= {"nodes": state.nodes, "running": state.run_time, "limit_seconds": limit and max(0.0, limit)}
        label = "waiting" if state.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD") else "working"
        return StageStatus(name, label, reason=state.reason, restarts=state.restarts, **facts)
    # The manifest is read after the job's state, because the job may end in between. On a network file system the
    # manifest that another machine wrote may not be visible yet.
    if run.manifest(name) or (state is not None and state.state == "COMPLETED"):
        return StageStatus(name, "done", **facts)
    if is_next and writer:
        return StageStatus(name, "working", **facts)
    if state is None:
        return StageStatus(name, "to do", **facts)
    code = state.exit_code if state.state != client.GONE else read_exit_code(run, name)
    return StageStatus(name, _ended_label(state, code), exit_code=code, **facts)


def _ended_label(job: client.JobState, code: int | None) -> str:
    """Return the state of an unfinished stage whose job has ended."""
    if job.state == "CANCELLED":
        return "cancelled"
    if code == Interrupted.exit_code or job.state in ("TIMEOUT", "PREEMPTED", "NODE_FAIL"):
        return "stopped"
    return "failed" if code is not None or client.is_available() else "unknown"


def _progress(stage: Stage, recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the progress of a stage; empty if it shows none."""
    if stage is REPLICATE:
        return _replicate_progress(recipe, run)
    return {"step": _training_progress, "answer": _evaluation_progress, "": lambda *_: {}}[stage.unit](recipe, run)


def _replicate_progress(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the progress of all further seeds: the steps of all, and the loss and the speed of the last that began."""
    folders = [run.replicate(seed) for seed in recipe.further_seeds]
    begun = [facts for facts in (_training_progress(recipe, folder) for folder in folders) if facts]
    if not begun:
        return {}
    last, steps = begun[-1], begun[-1]["done_of"][1]
    done = steps * (len(begun) - 1) + (steps if folders[len(begun) - 1].manifest("train") else last["done_of"][0])
    progress = {**last, "done_of": (done, steps * len(folders)), "stopped_early": None}
    left = steps - last["done_of"][0]
    all_left = steps * len(folders) - done
    progress["seconds_left"] = (
        round(last["seconds_left"] / left * all_left, 1) if left and "seconds_left" in last else None
    )
    return progress


def _training_progress(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the progress of training from the end of `metrics.jsonl`."""
    prepared = run.manifest("prepare")
    if prepared is None or not run.metrics.exists():
        return {}
    # The last line may be half-written, and the first may be cut off if the log is longer than what is read.
    try:
        lines = [json.loads(line) for line in _read_tail(run.metrics, _METRICS_TAIL).split("\n")[1:-1]]
    except ValueError as error:
        raise DamagedFile("a line is not JSON", where=str(run.metrics)) from error
    steps = [line for line in lines if line["kind"] == "step"]
    total = plan_steps(recipe, prepared["counts"]["train"]).total_steps
    if not steps:
        return {"done_of": (0, total)}
    recent = steps[-_SPEED_STEPS:]
    seconds = sum(line["seconds"] for line in recent)
    return {
        "done_of": (steps[-1]["step"], total),
        "stopped_early": (run.manifest("train") or {}).get("stopped_early"),  # older runs have none
        "loss": steps[-1]["loss"],
        "tokens_per_second": round(sum(line["tokens"] for line in recent) / max(seconds, 1e-9), 1),
        "seconds_left": round(seconds / len(recent) * (total - steps[-1]["step"]), 1),
    }


def _evaluation_progress(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return how many answers of all models are written, over all ranks."""
    prepared = run.manifest("prepare") or {}
    rows = min(recipe.evaluate.rows, prepared.get("counts", {}).get("test", recipe.evaluate.rows))
    models = ["base", "tuned", *map(seed_name, recipe.further_seeds)]
    files = [path for name in models for path in run.evaluation(name).glob("generations*.jsonl")]
    total = len(models) * rows * recipe.evaluate.samples
    return {"done_of": (sum(path.read_bytes().count(b"\n") for path in files), total)} if files else {}


def _log_excerpt(log: Path, *, ended: bool) -> tuple[str, ...]:
    """Return the last lines of a log; if the job has ended, only its last error and hint, without later lines."""
    lines = [line for line in _read_tail(log, _LOG_TAIL).splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if not (ended and errors):
        return tuple(lines[-_LOG_LINES:])
    return (lines[errors[-1]], *(line for line in lines[errors[-1] + 1 :][:1] if line.startswith("  hint: ")))


def _read_tail(path: Path, size: int) -> str:
    """Return the last `size` bytes of a file as text.

    The first line may be cut off. A shorter file is returned whole, after an empty line, so that callers can always
    skip the first line.
    """
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - size)
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    return text if start else f"\n{text}"
