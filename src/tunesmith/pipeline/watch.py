"""Watch a run's jobs until they are over: a picture that changes on a terminal, a line for every change elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tunesmith.core.errors import Interrupted, TunesmithError
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.status import RunStatus, StageStatus, status_of

# Slurm's controller serves all users of a cluster: it is asked about as often as people look.
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_OF_SILENCE = 1800.0


def watch_run(run: RunDir, *, every: float = _SECONDS_BETWEEN_LOOKS) -> None:
    """Show how a run's jobs do until none is left.

    Args:
        run: whose jobs.
        every: seconds between two looks.

    Raises:
        TunesmithError: a stage did not end well; `exit_code` is what it ended with.
        KeyboardInterrupt: the user has seen enough; the jobs go on.
    """
    with _screen() as show:
        while (found := _seen(run, every)).is_active:
            show(found)
            time.sleep(every)
        show(found)
    if (bad := found.first_failure) is not None:
        raise _error(bad)


def _seen(run: RunDir, every: float) -> RunStatus:
    """Return how a run does. Where Slurm or a disk does not answer for a while, the jobs do not mind."""
    until = time.monotonic() + _SECONDS_OF_SILENCE
    while True:
        try:
            return status_of(run)
        except TunesmithError as error:
            if time.monotonic() > until:
                raise
            log(f"asking again: {error.message}")
            time.sleep(max(every, 1.0))


def _error(bad: StageStatus) -> TunesmithError:
    where = bad.log or f"job {bad.job}"
    if bad.state in ("stopped", "cancelled"):
        return Interrupted(f"{bad.stage} was {bad.state}", where=where, hint="run the same command again to go on")
    code = bad.exit_code
    error = TunesmithError(f"{bad.stage} failed{f' with {code}' if code else ''}", where=where, hint="its log says why")
    error.exit_code = code or 1
    return error


@contextmanager
def _screen() -> Iterator[Callable[[RunStatus], None]]:
    """Yield what shows a status: on a terminal in place of the one before."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda found: live.update(Text(str(found)), refresh=True)


class _Lines:
    """Says how a stage does when that changes, and now and then how far it is."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[object, ...]] = {}
        self._last = 0.0

    def __call__(self, found: RunStatus) -> None:
        due = time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES
        for one in found.stages:
            now = (one.state, one.job, one.nodes, one.restarts)
            if self._told.get(one.stage) != now or (due and one.state == "working"):
                log(f"{one.stage}: {one}")
                self._last = time.monotonic()
            self._told[one.stage] = now
