"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0
# What must be done before the time left is shown: the first unit often takes much more, or much less, than the rest.
_UNITS_BEFORE, _SECONDS_BEFORE = 3, 5.0


class Progress:
    """Shows how far one piece of work is. `total` may be unknown."""

    def __init__(self, label: str, *, total: int | None = None, unit: str = "steps", start: int = 0) -> None:
        self._label, self._total, self._unit, self._start = label, total, unit, start
        self._began = self._last = time.monotonic()
        self._done = start
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = _bar(label, total, start)

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` units are finished; `note` stands behind them (loss, tokens a second)."""
        self._done = done
        if self._bar is not None:
            note = note or f"{done} {self._unit}"
            self._bar.update(self._bar.task_ids[0], completed=done, note=note, left=self._time_left())
            return
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or done == self._total:
            self._last = now
            self._line(note)

    def set_note(self, what: str) -> None:
        """Say what is done between two units, where that takes long."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=what)
        elif (now := time.monotonic()) - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._line(what)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, note: str) -> None:
        of = f"/{self._total}" if self._total else ""
        parts = [f"{self._label} {self._done}{of} {self._unit}", note, self._time_left()]
        log("  ".join(part for part in parts if part))

    def _time_left(self) -> str:
        done, seconds = self._done - self._start, time.monotonic() - self._began
        if not self._total or self._done >= self._total or done < _UNITS_BEFORE or seconds < _SECONDS_BEFORE:
            return ""
        return f"{format_duration(seconds / done * (self._total - self._done))} left"


def log(text: str) -> None:
    """Print one line of news on stderr. Where nobody reads it any more, the work goes on all the same."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 0.4s, 42s, 3m 20s, 2h 05m."""
    if 0 < seconds < 0.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _bar(label: str, total: int | None, start: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    left = TextColumn("{task.fields[left]}")
    bar = RichProgress(*columns, TimeElapsedColumn(), left, console=Console(stderr=True))
    bar.start()
    bar.add_task(label, total=total, completed=start, note="", left="")
    return bar
