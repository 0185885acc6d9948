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
        patient: ignore further signals, because a rank receives the same signal from several senders.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if _requested:
            if patient:
                return
            os._exit(128 + number)  # the second time the user means it; commits are atomic, nothing half-written counts
        _requested.append(number)
        # Past `sys.stderr`, which may be in the middle of a line; Ctrl-C may also have ended who reads it (`| tee`).
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping at the next safe point; once more to leave at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; whoever runs us in another sees to them
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Disable `check()` while ranks have to agree first that they stop."""
    _deferred.append(True)
    try:
        yield
    finally:
        _deferred.pop()


def requested_signal() -> int:
    """Return the number of the signal that came, or 0."""
    return _requested[0] if _requested else 0


def check() -> None:
    """Raise Interrupted if a signal came."""
    if _requested and not _deferred:
        raise interrupted_error(_requested[0])


def stop_when_requested(items: Iterable[T]) -> Iterator[T]:
    """Yield items until a signal comes: each of many processes leaves its own, and then they agree that they stop."""
    for item in items:
        if _requested:
            return
        yield item


def interrupted_error(number: int) -> Interrupted:
    """Return the error that a signal ends a run with."""
    return Interrupted(
        f"stopped by {signal.Signals(number).name}; everything finished so far is kept",
        hint="run the same command again to go on",
    )
