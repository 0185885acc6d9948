"""Ctrl-C, SIGTERM and SIGUSR1 as a flag that long loops check between two units of work."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from tunesmith.core.errors import Interrupted

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_requested: list[int] = []
_deferred: list[bool] = []


@contextlib.contextmanager
def catch_signals(*, patient: bool = False) -> Iterator[None]:
    """Record the first signal, and exit at once on the second. Inside, loops call `check()`.

    Args:
        patient: ignore further signals; a rank may receive the same one from Slurm and from its launcher.
    """

    def record(number: int, frame: FrameType | None) -> None:
        if _requested:
            if patient:
                return
            os._exit(128 + number)  # safe, because files are written atomically
        _requested.append(number)
        # Not through `sys.stderr`, which is not reentrant. OSError: Ctrl-C may have ended the reader (`| tee`) too.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping at the next safe point; press Ctrl-C again to exit at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.signal(number, record) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Disable `check()` until the ranks have agreed to stop."""
    _deferred.append(True)
    try:
        yield
    finally:
        _deferred.pop()


def requested_signal() -> int:
    """Return the number of the signal received, or 0."""
    return _requested[0] if _requested else 0


def check() -> None:
    """Raise Interrupted if a signal was received."""
    if _requested and not _deferred:
        raise interrupted_error(_requested[0])


def stop_when_requested(items: Iterable[T]) -> Iterator[T]:
    """Yield items until a signal is received. Each rank leaves its loop by this; then the ranks agree to stop."""
    for item in items:
        if _requested:
            return
        yield item


def interrupted_error(number: int) -> Interrupted:
    """Return the error for a run that a signal stopped."""
    message = f"stopped by {signal.Signals(number).name}; everything finished so far is kept"
    return Interrupted(message, hint="run the same command again to resume")
