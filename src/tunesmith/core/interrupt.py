"""Ctrl-C and SIGTERM as a flag that long loops look at between two units of work."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tunesmith.core.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_requested: list[int] = []


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Note the first signal and leave at once on the second. Inside, loops call `check()`."""

    def note(number: int, frame: FrameType | None) -> None:
        if _requested:
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


def requested() -> bool:
    """Say whether a signal came."""
    return bool(_requested)


def check() -> None:
    """Raise Interrupted if a signal came."""
    if _requested:
        raise Interrupted(
            f"stopped by {signal.Signals(_requested[0]).name}; everything finished so far is kept",
            hint="run the same command again to go on",
        )
