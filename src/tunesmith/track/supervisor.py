"""A run's side of its trackers: one process each, started with the first stage that works, told of the run's end."""

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
SECONDS_TO_FINISH = 60.0  # a tracker that only starts now may need half of it on a busy machine


class TrackerSupervisor:
    """The trackers of a run, as a context. What goes wrong with one is said once, and it is dropped.

    Args:
        names: of trackers that are installed.
        run: what they follow.
        settings: the recipe as JSON.
        seconds_to_finish: how long the end of the run waits for them.
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
        self._all: list[_Follower] | None = None

    def start(self) -> None:
        """Start all of them, once."""
        if self._all is not None:
            return
        self._all = []
        for name in self._names:
            try:
                self._all.append(_Follower(name, self._run, self._settings, self._seconds))
            except OSError as error:
                _say_dropped(name, f"could not be started ({error})")

    def __enter__(self) -> "TrackerSupervisor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let them tell what is left. A run that had nothing to do still tells a tracker that missed something."""
        if self._all is None and kind is None and any(_missed(name, self._run) for name in self._names):
            self.start()
        for follower in self._all or ():
            follower.end()
        for follower in self._all or ():
            follower.wait(self._seconds + 1)  # by itself it ends before that


def _missed(name: str, run: RunDir) -> bool:
    """Say whether a tracker has not been told the run's verdict, or nothing at all."""
    state = run.track(name) / "state.json"
    if not state.exists():
        return True
    with contextlib.suppress(DamagedFile):
        told = read_json(state).get("files", {}).get(run.verdict.name)
        return bool(told != (digest_file(run.verdict) if run.verdict.exists() else None))
    return True


class _Follower:
    """One tracker's process, and a thread that notices when it dies."""

    def __init__(self, name: str, run: RunDir, settings: dict[str, Any], seconds: float) -> None:
        self._name, self._log = name, run.track(name) / "log.txt"
        self._told = threading.Lock()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, name, str(run.path.resolve()), str(seconds)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is for us: it learns of the end by the end of its input
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it died at once, which the thread tells
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        self._watch = threading.Thread(target=self._notice_death, daemon=True)
        self._watch.start()

    def end(self) -> None:
        """Tell it that the run has ended."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait for it, and end it where that is too long."""
        self._watch.join(seconds)
        if self._watch.is_alive():
            self._tell("did not finish in time")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with the processes it has started
            self._watch.join()

    def _notice_death(self) -> None:
        if self._process.wait() != 0:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self._tell(f"failed ({lines[-1][:200] if lines else f'exit code {self._process.returncode}'})")

    def _tell(self, what: str) -> None:
        if self._told.acquire(blocking=False):
            _say_dropped(self._name, what)


def _say_dropped(name: str, what: str) -> None:
    log(f"track: {name} {what}; the run goes on without it, train/metrics.jsonl holds everything")
