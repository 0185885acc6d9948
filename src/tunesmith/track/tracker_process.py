"""The process of a tracker: read a run's files as they grow, and log new lines, until standard input ends.

    python -m tunesmith.track.tracker_process NAME RUN SECONDS

The first line of standard input is the recipe as JSON. The input ends when the run ends or is killed; the process then
logs the rest within SECONDS.

`track/NAME/state.json` records what was logged. It is written before logging, so nothing is logged twice; a tracker
that crashes in between misses those lines.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.files import digest_file, read_json, write_json
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.track.tracker import TrackedRun, Tracker, load_tracker

_POLL_SECONDS = 1.0
_PREFIX = {"step": "train"}
_NOT_METRICS = ("kind", "step", "time")


def main() -> int:
    """Feed a tracker and return the exit code. If it is not 0, the last line on stderr is the error."""
    name, run, seconds = sys.argv[1], RunDir(sys.argv[2]), float(sys.argv[3])
    settings = json.loads(sys.stdin.readline() or "{}")
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended, seconds), daemon=True).start()
    try:
        feed(name, run, settings, ended)
    except BaseException as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 0


def _wait_for_end(ended: threading.Event, seconds: float) -> None:
    sys.stdin.read()
    ended.set()
    time.sleep(seconds)
    print("did not finish in time", file=sys.stderr, flush=True)
    os._exit(1)  # the tracker hangs, perhaps where an exception cannot reach it


def feed(name: str, run: RunDir, settings: dict[str, Any], ended: threading.Event) -> None:
    """Log what a run writes until `ended` is set; then log its verdict and files."""
    folder = run.track(name).resolve()
    with exclusive_lock(folder / "lock", wait=True):  # the process of a killed run finishes first
        state = _State(folder / "state.json")
        tracker = load_tracker(name)
        project, label = str(settings.get("name", "tunesmith")), run.path.resolve().name
        state.run_id = tracker.start(TrackedRun(project, label, folder, dict(_flatten(settings))), state.run_id)
        state.save()
        log = GrowingLog(run.metrics)
        is_last = False
        while not is_last:
            is_last = ended.wait(_POLL_SECONDS)  # read the log once more after the end
            lines = [line for line in log.new_lines() if state.add(line)]
            if lines:
                state.save()
            for line in lines:
                metrics = _metrics_of(line)
                if metrics:
                    tracker.log(metrics, step=line["step"], time=line.get("time", time.time()))
        _log_result(tracker, run, state)
        tracker.finish(complete=run.manifest("evaluate") is not None)


def _log_result(tracker: Tracker, run: RunDir, state: "_State") -> None:
    """Log the verdict and the run's files, unless they were logged before and have not changed."""
    files = [file for file in (run.resolved_recipe, run.verdict, run.report) if file.exists()]
    changed = [file for file in files if state.files.get(file.name) != digest_file(file)]
    state.files |= {file.name: digest_file(file) for file in changed}
    state.save()
    if run.verdict in changed:
        steps = (run.manifest("train") or {}).get("steps", 0)
        tracker.log(_verdict_metrics(read_json(run.verdict)), step=steps, time=time.time())
    for file in changed:
        tracker.log_file(file)


def _verdict_metrics(verdict: dict[str, Any]) -> dict[str, float]:
    """Return a verdict as metrics, such as `verdict/rougeL/gain`.

    `verdict/better` is 1 for `better`, -1 for `not_better`, and 0 for `cannot_tell`.
    """
    values: dict[str, float] = {"verdict/better": {"better": 1.0, "not_better": -1.0}.get(verdict["verdict"], 0.0)}
    for metric, entry in verdict["metrics"].items():
        values |= {
            f"verdict/{_metric_name(metric)}/{key}": entry[key] for key in ("base", "tuned", "gain", "low", "high")
        }
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers in a line of metrics.jsonl, such as {"train/loss": 0.5}."""
    prefix = _PREFIX.get(line["kind"], line["kind"])
    return {
        f"{prefix}/{_metric_name(name)}": float(value)
        for name, value in line.items()
        if name not in _NOT_METRICS and isinstance(value, int | float) and math.isfinite(value)
    }


def _metric_name(metric: str) -> str:
    """Return a metric's name without the colon of custom metrics and the @ of pass@k: not all trackers accept them."""
    return metric.replace(":", ".").replace("@", ".")


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as (`train.learning_rate`, 0.0002)."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _flatten(child, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value if isinstance(value, str | int | float | bool) else json.dumps(value, ensure_ascii=False)


class _State:
    """What was logged: the tracker's id of the run, the last step or time of each kind of line, and files' digests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored = read_json(path) if path.exists() else {}
        self.run_id: str | None = stored.get("id")
        self.last: dict[str, float] = stored.get("last", {})
        self.files: dict[str, str] = stored.get("files", {})

    def add(self, line: dict[str, Any]) -> bool:
        """Mark a line as logged; return False if its step was logged before, as after a resume."""
        kind = line["kind"]
        position = line["time"] if kind == "machine" else line["step"]
        last = self.last.get(kind)
        # A tracker accepts no earlier step, so samples of the machine's use are left out while steps are repeated.
        if (last is not None and position <= last) or (kind == "machine" and line["step"] < self.last.get("step", 0)):
            return False
        self.last[kind] = position
        return True

    def save(self) -> None:
        write_json(self._path, {"id": self.run_id, "last": self.last, "files": self.files})


class GrowingLog:
    """A JSONL file that grows, and that a resumed run replaces by a shorter one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = (0, 0)  # inode, bytes read

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the whole lines added since the last call; all lines if the file was replaced."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                start = self._position[1] if inode == self._position[0] else 0
                file.seek(start)
                text = b"".join(file.read().rpartition(b"\n")[0:2])
        except FileNotFoundError:
            return []
        self._position = (inode, start + len(text))
        return [json.loads(line) for line in text.split(b"\n") if line]


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # do not wait for threads that a tracker has left running
