"""Crash-loop detection: after two kills at the same step, refuse a third attempt.

A killed process (out of memory, a lost machine) leaves no error, and a scheduler would restart it forever.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.core.errors import ProcessLost, TunesmithError
from tunesmith.core.files import read_json, write_json
from tunesmith.core.jsonl import read_jsonl, read_whole_lines
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import rows_of_step
from tunesmith.distributed.failure import run_before_peer_exit
from tunesmith.train.loop import Setup

_MAX_NAMED_ROWS = 8


@contextmanager
def record_attempt(setup: Setup, run: RunDir, *, first_step: int) -> Iterator[None]:
    """Record an attempt at training while the block runs, and remove the record when the block ends or raises.

    An attempt that is still recorded at the next start was killed.

    Args:
        first_step: the number of steps in the last checkpoint.

    Raises:
        TunesmithError: two attempts in a row were killed at the same step; the message names its rows.
    """

    def clear_attempts() -> None:
        if setup.group.is_rank0:
            run.attempts.unlink(missing_ok=True)

    setup.group.run_on_rank0(lambda: _count_attempt(setup, run, first_step))
    try:
        with run_before_peer_exit(clear_attempts):
            yield
    except ProcessLost:  # the lost rank may have been killed
        raise
    except Exception:
        clear_attempts()
        raise
    clear_attempts()


def _count_attempt(setup: Setup, run: RunDir, first_step: int) -> None:
    path, killed_at = run.attempts, []
    if path.exists():
        finished_steps = [line["step"] for line in read_whole_lines(run.metrics) if line["kind"] == "step"]
        killed_at = [*read_json(path)["killed_at"], max([first_step, *finished_steps]) + 1]
    if len(killed_at) > 1 and killed_at[-1] == killed_at[-2]:
        step = killed_at[-1]
        message = f"training was killed twice at step {step}, which reads {_name_rows(setup, run, step)}"
        hint = "if memory ran out, lower train.micro_batch_tokens or drop long rows; delete this file to try again"
        raise TunesmithError(message, where=str(path), hint=hint, code="crash-loop")
    write_json(path, {"killed_at": killed_at})


def _name_rows(setup: Setup, run: RunDir, step: int) -> str:
    """Return the locations in the source files of the rows of a step, which is counted from 1."""
    if step > setup.plan.total_steps:
        return "no rows (validation after the last step)"
    ids = [line["id"] for line in read_jsonl(run.examples("train"))]
    step_ids = {ids[row] for row in rows_of_step(setup.recipe, setup.plan, step - 1)}
    places = [line["where"] for line in read_jsonl(run.ledger) if line["id"] in step_ids]
    more = f" and {len(places) - _MAX_NAMED_ROWS} more" if len(places) > _MAX_NAMED_ROWS else ""
    return ", ".join(places[:_MAX_NAMED_ROWS]) + more
