"""Ctrl-C and SIGTERM as a flag that long loops look at between two units of work."""

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
_postponed: list[bool] = []


@contextlib.contextmanager
def watched(*, patient: bool = False) -> Iterator[None]:
    """Note the first signal and leave at once on the second. Inside, loops call `check()`.

    Args:
        patient: only note the second too: of many processes one gets the same signal from several sides.
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
def postponed() -> Iterator[None]:
    """Let `check()` do nothing, where many processes have to agree first that they stop."""
    _postponed.append(True)
    try:
        yield
    finally:
        _postponed.pop()


def requested() -> int:
    """Return the number of the signal that came, or 0."""
    return _requested[0] if _requested else 0


def check() -> None:
    """Raise Interrupted if a signal came."""
    if _requested and not _postponed:
        raise stopped(_requested[0])


def until_requested(items: Iterable[T]) -> Iterator[T]:
    """Yield items until a signal comes: each of many processes leaves its own, and then they agree that they stop."""
    for item in items:
        if _requested:
            return
        yield item


def stopped(number: int) -> Interrupted:
    """Return the error that a signal ends a run with."""
    return Interrupted(
        f"stopped by {signal.Signals(number).name}; everything finished so far is kept",
        hint="run the same command again to go on",
    )
