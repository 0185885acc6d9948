"""Progress on stderr: a bar with the remaining time on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0
# Units and seconds before the remaining time is shown, because the first unit is often much slower or faster.
_MIN_UNITS, _MIN_SECONDS = 3, 5.0


class Progress:
    """The progress of one piece of work.

    Args:
        label: the name of the work.
        total: the number of units; None if it is unknown.
        start: units that were finished before.
    """

    def __init__(self, label: str, *, total: int | None = None, unit: str = "steps", start: int = 0) -> None:
        self._label, self._total, self._unit, self._start = label, total, unit, start
        self._began = self._last = time.monotonic()
        self._done = start
        self._bar = _bar(label, total, start) if sys.stderr.isatty() else None

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` units are finished, with a note such as the loss."""
        self._done = done
        if self._bar is not None:
            note = note or f"{done} {self._unit}"
            self._bar.update(self._bar.task_ids[0], completed=done, note=note, left=self._time_left())
        else:
            self._print(note, at_once=done == self._total)

    def set_note(self, note: str) -> None:
        """Show long work between two units, such as a validation."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=note)
        else:
            self._print(note)

    def close(self) -> None:
        """Stop the bar and leave its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, note: str, *, at_once: bool = False) -> None:
        """Print a line, unless the last one was printed just before."""
        if time.monotonic() - self._last < _SECONDS_BETWEEN_LINES and not at_once:
            return
        self._last = time.monotonic()
        of = f"/{self._total}" if self._total else ""
        parts = [f"{self._label} {self._done}{of} {self._unit}", note, self._time_left()]
        log("  ".join(part for part in parts if part))

    def _time_left(self) -> str:
        done, seconds = self._done - self._start, time.monotonic() - self._began
        if not self._total or self._done >= self._total or done < _MIN_UNITS or seconds < _MIN_SECONDS:
            return ""
        return f"{format_duration(seconds / done * (self._total - self._done))} left"


def log(text: str) -> None:
    """Print a line on stderr."""
    with contextlib.suppress(OSError):  # a closed stderr must not end the work
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


def format_bytes(count: int) -> str:
    """Return a number of bytes with a decimal unit, as file managers and disks state it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _bar(label: str, total: int | None, start: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    label_column, note, left = map(TextColumn, ("{task.description:9}", "{task.fields[note]}", "{task.fields[left]}"))
    columns = (label_column, BarColumn(24), MofNCompleteColumn(), note, TimeElapsedColumn(), left)
    bar = RichProgress(*columns, console=Console(stderr=True))
    bar.start()
    bar.add_task(label, total=total, completed=start, note="", left="")
    return bar
