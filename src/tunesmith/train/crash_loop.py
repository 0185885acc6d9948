"""Attempts at training that ended without a word: where two did at the same step, a third would too.

A process that is killed (by the system for its memory, with its machine) cannot say so, and a scheduler would start it
for ever.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tunesmith.core.errors import ProcessLost, TunesmithError
from tunesmith.core.files import read_json, write_json
from tunesmith.core.jsonl import read_jsonl, read_whole_lines
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import batch_indices
from tunesmith.distributed.failure import run_before_peer_exit
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe

_MOST_ROWS = 8


@contextmanager
def record_attempt(recipe: Recipe, run: RunDir, group: ProcessGroup, *, first_step: int) -> Iterator[None]:
    """Train within: what ends with an error has said why, and what does not is counted at the next start.

    Args:
        recipe: whose steps.
        run: where attempts are noted.
        group: the processes that train.
        first_step: how many steps the last checkpoint has.

    Raises:
        TunesmithError: two attempts in a row were killed at the same step; its rows are named.
    """
    group.run_on_rank0(partial(_begin, recipe, run, first_step))
    try:
        with run_before_peer_exit(partial(_forget, run, group)):
            yield
    except ProcessLost:  # the one that is gone may have said nothing
        raise
    except Exception:
        _forget(run, group)
        raise
    _forget(run, group)


def _begin(recipe: Recipe, run: RunDir, first_step: int) -> None:
    path, killed_at = run.attempts, []
    if path.exists():
        done = [line["step"] for line in read_whole_lines(run.metrics) if line["kind"] == "step"]
        killed_at = [*read_json(path)["killed_at"], max([first_step, *done]) + 1]
    if len(killed_at) > 1 and killed_at[-1] == killed_at[-2]:
        step = killed_at[-1]
        raise TunesmithError(
            f"training was killed twice at step {step}, which reads {_rows(recipe, run, step)}",
            where=str(path),
            hint="for memory? lower train.micro_batch_tokens, or leave long rows out; remove this file to try again",
        )
    write_json(path, {"killed_at": killed_at})


def _forget(run: RunDir, group: ProcessGroup) -> None:
    if group.is_rank0:
        run.attempts.unlink(missing_ok=True)


def _rows(recipe: Recipe, run: RunDir, step: int) -> str:
    """Return where the rows of a step, counted from 1, come from."""
    ids = [line["id"] for line in read_jsonl(run.examples("train"))]
    plan = plan_steps(recipe, len(ids))
    if step > plan.total_steps:
        return "no rows: it was validating after the last"
    size = recipe.train.examples_per_step
    rows = batch_indices(
        step - 1, rows=len(ids), examples_per_step=size, total_examples=plan.total_examples, seed=recipe.seed
    )
    wanted = {ids[row] for row in rows}
    return _listed([line["where"] for line in read_jsonl(run.ledger) if line["id"] in wanted])


def _listed(places: Sequence[str]) -> str:
    more = f" and {len(places) - _MOST_ROWS} more" if len(places) > _MOST_ROWS else ""
    return ", ".join(places[:_MOST_ROWS]) + more
