"""Start a process for each tracker of a run when its first stage starts, and let them finish at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import digest_file, read_json
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir

_MODULE = "tunesmith.track.tracker_process"
SECONDS_TO_FINISH = 60.0  # on a busy machine a tracker may need half of it just to start


class TrackerSupervisor:
    """The trackers of a run, as a context manager. A tracker that fails is reported once and dropped.

    Args:
        names: installed trackers.
        run: the run whose files they log.
        settings: the recipe as JSON.
        seconds_to_finish: how long the end of the run waits for the trackers.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: RunDir,
        settings: dict[str, Any],
        *,
        seconds_to_finish: float = SECONDS_TO_FINISH,
    ) -> None:
        self._names, self._run, self._settings, self._seconds = tuple(names), run, settings, seconds_to_finish
        self._processes: list[_TrackerProcess] | None = None

    def start(self) -> None:
        """Start the trackers' processes, unless they are started already."""
        if self._processes is not None:
            return
        self._processes = []
        for name in self._names:
            try:
                self._processes.append(_TrackerProcess(name, self._run, self._settings, self._seconds))
            except OSError as error:
                _log_dropped(name, f"could not be started ({error})")

    def __enter__(self) -> "TrackerSupervisor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the trackers have logged the rest. If no stage ran, start them if one of them is behind."""
        if self._processes is None and kind is None and any(_is_behind(name, self._run) for name in self._names):
            self.start()
        for process in self._processes or ():
            process.end()
        for process in self._processes or ():
            process.wait(self._seconds + 1)  # it should exit a second earlier


def _is_behind(name: str, run: RunDir) -> bool:
    """Return whether a tracker has logged nothing yet, or not the current verdict."""
    state = run.track(name) / "state.json"
    if not state.exists():
        return True
    with contextlib.suppress(DamagedFile):
        logged = read_json(state).get("files", {}).get(run.verdict.name)
        return bool(logged != (digest_file(run.verdict) if run.verdict.exists() else None))
    return True


class _TrackerProcess:
    """The process of a tracker, and a thread that reports if it fails."""

    def __init__(self, name: str, run: RunDir, settings: dict[str, Any], seconds: float) -> None:
        self._name, self._log = name, run.track(name) / "log.txt"
        self._reported = threading.Lock()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, name, str(run.path.resolve()), str(seconds)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is not for it: it ends when its input does
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has exited already, which the thread reports
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        self._watch = threading.Thread(target=self._report_failure, daemon=True)
        self._watch.start()

    def end(self) -> None:
        """Close the process's input, which signals that the run has ended."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait until it exits, and kill it if it takes longer than `seconds`."""
        self._watch.join(seconds)
        if self._watch.is_alive():
            self._report("did not finish in time")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with its child processes
            self._watch.join()

    def _report_failure(self) -> None:
        if self._process.wait() != 0:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self._report(f"failed ({lines[-1][:200] if lines else f'exit code {self._process.returncode}'})")

    def _report(self, problem: str) -> None:
        """Log a problem, unless one was logged before."""
        if self._reported.acquire(blocking=False):
            _log_dropped(self._name, problem)


def _log_dropped(name: str, problem: str) -> None:
    log(f"tracker {name} {problem}; the run continues without it, and train/metrics.jsonl has all metrics")
