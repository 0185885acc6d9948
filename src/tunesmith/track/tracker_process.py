"""One tracker's process: follow a run's files until our standard input ends, and tell the tracker what is new.

    python -m tunesmith.track.tracker_process NAME RUN SECONDS

`track/NAME/state.json` says what has been told. It is written before telling, so nothing is ever told twice; a
tracker that dies in between misses those lines. When the input ends, because the run ended or was killed, what is left
is told, within SECONDS.
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
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.track.tracker import TrackedRun, Tracker, load_tracker

_SECONDS_BETWEEN_LOOKS = 1.0
_PREFIX = {"step": "train"}
_NOT_VALUES = ("kind", "step", "time")


def main() -> int:
    """Follow a run; return the exit code. The last line on stderr says what went wrong."""
    name, run, seconds = sys.argv[1], RunDir(sys.argv[2]), float(sys.argv[3])
    settings = json.loads(sys.stdin.readline() or "{}")
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended, seconds), daemon=True).start()
    try:
        follow(name, run, settings, ended)
    except BaseException as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 0


def _wait_for_end(ended: threading.Event, seconds: float) -> None:
    sys.stdin.read()
    ended.set()
    time.sleep(seconds)
    print("did not finish in time", file=sys.stderr, flush=True)
    os._exit(1)  # the tracker hangs, perhaps where no exception reaches


def follow(name: str, run: RunDir, settings: dict[str, Any], ended: threading.Event) -> None:
    """Tell a tracker what a run writes, until `ended`; then its verdict and files."""
    folder = run.track(name).resolve()
    with exclusive_lock(folder / "lock", wait=True):  # a process that is left from a killed run finishes first
        state = _State(folder / "state.json")
        tracker = load_tracker(name)
        project, label = str(settings.get("name", "tunesmith")), run.path.resolve().name
        state.known = tracker.start(TrackedRun(project, label, folder, dict(_flat(settings))), state.known)
        state.save()
        log = _Log(run.metrics)
        last = False
        while not last:
            last = ended.wait(_SECONDS_BETWEEN_LOOKS)  # and once more after the end
            fresh = [line for line in log.new_lines() if state.is_new(line)]
            if fresh:
                state.save()
            for line in fresh:
                values = _values(line)
                if values:
                    tracker.log(values, step=line["step"], time=line.get("time", time.time()))
        _tell_result(tracker, run, state)
        tracker.finish(complete=run.manifest("evaluate") is not None)


def _tell_result(tracker: Tracker, run: RunDir, state: "_State") -> None:
    files = [file for file in (run.resolved_recipe, run.verdict, run.report) if file.exists()]
    changed = [file for file in files if state.files.get(file.name) != digest_file(file)]
    state.files |= {file.name: digest_file(file) for file in changed}
    state.save()
    if run.verdict in changed:
        steps = (run.manifest("train") or {}).get("steps", 0)
        tracker.log(_verdict_values(read_verdict(run.verdict)), step=steps, time=time.time())
    for file in changed:
        tracker.artifact(file)


def _verdict_values(verdict: Verdict) -> dict[str, float]:
    """Return what a verdict says as metrics: `verdict/rougeL/gain`. `better` is 1, `not_better` -1, else 0."""
    found = {"verdict/better": {"better": 1.0, "not_better": -1.0, "cannot_tell": 0.0}[verdict.primary.verdict]}
    for metric, comparison in verdict.metrics.items():
        for key in ("base", "tuned", "gain", "low", "high"):
            found[f"verdict/{_name(metric)}/{key}"] = float(getattr(comparison, key))
    return found


def _values(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl: {"train/loss": 0.5}."""
    prefix = _PREFIX.get(line["kind"], line["kind"])
    return {
        f"{prefix}/{_name(name)}": float(value)
        for name, value in line.items()
        if name not in _NOT_VALUES and isinstance(value, int | float) and math.isfinite(value)
    }


def _name(metric: str) -> str:
    """Return a metric's name without the colon of functions of the user's own, which not every tracker takes."""
    return metric.replace(":", ".")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings as `train.learning_rate`: 0.0002."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value if isinstance(value, str | int | float | bool) else json.dumps(value, ensure_ascii=False)


class _State:
    """What has been told: the tracker's id of the run, the last step or time of each kind of line, digests of files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = read_json(path) if path.exists() else {}
        self.known: str | None = found.get("id")
        self.last: dict[str, float] = found.get("last", {})
        self.files: dict[str, str] = found.get("files", {})

    def is_new(self, line: dict[str, Any]) -> bool:
        """Say whether a line was not told yet, and count it as told. Steps that are taken again are told once."""
        kind = line["kind"]
        mark = line["time"] if kind == "machine" else line["step"]
        known = self.last.get(kind)
        # A tracker takes no step back, so the machine's use is left out where steps are repeated.
        if (known is not None and mark <= known) or (kind == "machine" and line["step"] < self.last.get("step", 0)):
            return False
        self.last[kind] = mark
        return True

    def save(self) -> None:
        write_json(self._path, {"id": self.known, "last": self.last, "files": self.files})


class _Log:
    """The lines of a JSONL file that grows, and is now and then replaced by a shorter one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = (0, 0)  # inode, bytes

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the whole lines since the last call; all of them, where the file was replaced."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                begin = self._read[1] if inode == self._read[0] else 0
                file.seek(begin)
                whole = file.read().rpartition(b"\n")[0:2]
        except FileNotFoundError:
            return []
        text = b"".join(whole)
        self._read = (inode, begin + len(text))
        return [json.loads(line) for line in text.split(b"\n") if line]


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that a tracker left behind do not keep us
