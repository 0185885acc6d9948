"""Watch a run's jobs until they end. A terminal shows a live status; other output gets one line for each change."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tunesmith.core.errors import Interrupted, TunesmithError
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.status import RunStatus, StageStatus, status_of

_POLL_SECONDS = 5.0  # Slurm's controller serves all users of a cluster, so it is not asked more often
_PROGRESS_SECONDS = 60.0  # between two lines of progress without a change of state
_MAX_SILENT_SECONDS = 1800.0  # for which errors of Slurm or of a disk are only logged


def watch_run(run: RunDir, *, every: float = _POLL_SECONDS) -> None:
    """Show the status of a run's jobs until none waits or runs.

    Args:
        every: seconds between two polls.

    Raises:
        TunesmithError: a stage failed; the error has the stage's exit code.
        Interrupted: a stage was stopped or cancelled.
        KeyboardInterrupt: the user pressed Ctrl-C; the jobs keep running.
    """
    with _display() as show:
        while (status := _poll(run, every)).is_active:
            show(status)
            time.sleep(every)
        show(status)
    if (failed := status.first_failure) is not None:
        raise _stage_error(failed)


def _poll(run: RunDir, every: float) -> RunStatus:
    """Return the run's status. Retry errors for a while: the jobs keep running even if Slurm does not answer."""
    deadline = time.monotonic() + _MAX_SILENT_SECONDS
    while True:
        try:
            return status_of(run)
        except TunesmithError as error:
            if time.monotonic() > deadline:
                raise
            log(f"asking again: {error.message}")
            time.sleep(max(every, 1.0))


def _stage_error(failed: StageStatus) -> TunesmithError:
    """Return the error for a stage that did not finish."""
    where = failed.log or f"job {failed.job}"
    if failed.state in ("stopped", "cancelled"):
        return Interrupted(f"{failed.stage} was {failed.state}", where=where, hint="run the same command to resume")
    code = failed.exit_code
    problem = f"{failed.stage} failed" + (f" with exit code {code}" if code else "")
    error = TunesmithError(problem, where=where, hint="its log has the error", code="stage-failed")
    error.exit_code = code or 1
    return error


@contextmanager
def _display() -> Iterator[Callable[[RunStatus], None]]:
    """Yield a function that shows a status; on a terminal it replaces the status shown before."""
    if not sys.stderr.isatty():
        yield _ChangeLog()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda status: live.update(Text(str(status)), refresh=True)


class _ChangeLog:
    """Log a stage's status when its state changes, and its progress from time to time."""

    def __init__(self) -> None:
        self._logged: dict[str, tuple[object, ...]] = {}
        self._last = 0.0

    def __call__(self, status: RunStatus) -> None:
        is_due = time.monotonic() - self._last >= _PROGRESS_SECONDS
        for stage in status.stages:
            state = (stage.state, stage.job, stage.nodes, stage.restarts)
            if self._logged.get(stage.stage) != state or (is_due and stage.state == "working"):
                log(f"{stage.stage}: {stage}")
                self._last = time.monotonic()
            self._logged[stage.stage] = state
