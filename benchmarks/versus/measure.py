"""Measure one run in a separate process, with a time limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.versus.rows import ROOT
from benchmarks.versus.spread import rate

WORKERS = Path(__file__).resolve().parent / "workers"
_SECONDS_BETWEEN_LOOKS = 0.02
_SECONDS_TO_END = 20
# These would change the modules or the paths of a peer's process.
_LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "TUNESMITH_REGISTRY", "TUNESMITH_CACHE")


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one process.

    Attributes:
        steps: training steps {step, seconds, tokens, trained_tokens, loss}.
        first_step_seconds: from the start of the process to the end of its first step.
        result: the JSON object that the worker returned.
    """

    steps: list[dict[str, Any]]
    seconds: float
    first_step_seconds: float | None
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Return the tokens per second, without padding and the first steps."""
        return rate(self.steps)


def environment_of_ours(scratch: Path) -> dict[str, str]:
    """Return the environment of our processes: offline, with a separate registry."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    place = {"PYTHONPATH": str(ROOT / "src"), "TUNESMITH_REGISTRY": str(scratch / "registry")}
    return {**inherited, **_QUIET, **place}


def environment_of_peers(scratch: Path) -> dict[str, str]:
    """Return the environment of the peers' processes: offline, with an empty cache."""
    inherited = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    return {**inherited, **_QUIET, "HF_DATASETS_CACHE": str(scratch / "datasets"), "DISABLE_MLFLOW_INTEGRATION": "TRUE"}


# Threads wait as in tunesmith's command line (benchmarks/busy_neighbour.py), so that a neighbour process slows all
# systems alike.
_QUIET = {
    "GOMP_SPINCOUNT": "20000",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def measure(
    worker: str,
    job: dict[str, Any],
    folder: Path,
    *,
    python: Path | None = None,
    log: Path | None = None,
    limit_seconds: float = 3600.0,
    first_step_only: bool = False,
) -> Measured:
    """Run a worker on a job and return its measurements.

    Args:
        folder: a folder for this run only.
        python: the interpreter of the peers' environment; default ours.
        log: where the steps are logged; default a file in `folder`.
        limit_seconds: time after which the worker is stopped; its finished steps count.
        first_step_only: stop the worker after its first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = log or folder / "log.jsonl"
    log.unlink(missing_ok=True)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    request = {**job, "log": str(log), "result": str(result), "scratch": str(folder / "scratch")}
    (folder / "job.json").write_text(json.dumps(request), encoding="utf-8")
    environment = environment_of_peers(folder) if python else environment_of_ours(folder)
    command = [str(python or sys.executable), str(WORKERS / worker), str(folder / "job.json")]
    seconds, first, stopped = watched(
        command, environment, folder, lambda: has_step(log), limit_seconds, first_step_only
    )
    steps = steps_in(log)
    answer = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    error = answer.pop("error", None)
    if stopped and first_step_only and first is not None:
        error = None
    elif stopped and not (error or answer):
        error = f"was stopped after {limit_seconds:.0f} s, {len(steps)} steps done"
    elif not answer:
        error = f"died: {_last_words(folder)}"
    return Measured(steps, seconds, first, answer, error)


def watched(
    command: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    is_there: Callable[[], bool],
    limit_seconds: float,
    first_only: bool = False,
) -> tuple[float, float | None, bool]:
    """Run a command; return its seconds, the seconds until `is_there()`, and whether it was stopped."""
    began, first = time.perf_counter(), None
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                now = time.perf_counter() - began
                if first is None and is_there():
                    first = now
                if now > limit_seconds or (first_only and first is not None):
                    return now, first, True
                time.sleep(_SECONDS_BETWEEN_LOOKS if first is None else 5 * _SECONDS_BETWEEN_LOOKS)
        finally:
            if process.poll() is None:  # it reached the limit, or we were stopped; its children end too
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signal.SIGTERM)  # torchrun puts its processes into separate groups
                    process.wait(_SECONDS_TO_END)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.perf_counter() - began
    return seconds, first if first is not None or not is_there() else seconds, False


def has_step(log: Path) -> bool:
    """Return whether a step is logged."""
    return log.exists() and '"kind": "step"' in log.read_text(encoding="utf-8", errors="replace")


def steps_in(log: Path) -> list[dict[str, Any]]:
    """Return the steps of a log with their losses, which some trainers log in separate lines."""
    if not log.exists():
        return []
    lines = [line for text in log.read_text(encoding="utf-8").splitlines() if (line := _line(text))]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "loss"}
    return [{"loss": losses.get(line["step"]), **line} for line in lines if line["kind"] == "step"]


def _line(text: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(text))
    except ValueError:  # the process was stopped while it wrote
        return None


def _last_words(folder: Path) -> str:
    lines = [line.strip() for line in (folder / "output.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
