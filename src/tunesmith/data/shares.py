"""Rows examined by several processes: the first here, and once there are many, in shares that come back in order.

What becomes of a row does not depend on who looks at it, so the files are the same. A process begins anew instead of
being forked, since threads may run here. It ends with the one that started it, however that ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice

from tunesmith.core import interrupt
from tunesmith.core.progress import say
from tunesmith.data.examine import examine_row
from tunesmith.data.shelf import Parcel, packed
from tunesmith.data.sources import Row
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.hardware import cores
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.markup import codec_of

ALONE = 3000
"""So many rows are examined before others are asked for help: until then their start would cost more than it saves."""
_SHARE = 32
_MOST_PROCESSES = 8  # one process reads and keeps what so many examine
_WAITING = 3  # shares for each process, so that none waits while others are kept here

Share = tuple[Row, ...]
_Answer = Future[list[Parcel]]


def shared_out(recipe: Recipe, task: Task, model: ModelFolder | None, rows: Iterator[Row]) -> Iterator[Parcel]:
    """Yield what becomes of rows, in their order.

    Args:
        model: whose tokenizer the task has; None where all is to be done in this process.

    Raises:
        DataError: a column is missing.
    """
    yield from _alone(recipe, task, rows if model is None else islice(rows, ALONE))
    if model is None:
        return
    shares = iter(lambda: tuple(islice(rows, _SHARE)), ())
    first = next(shares, ())
    processes = min(cores(), _MOST_PROCESSES)
    if processes < 2 or not first:
        yield from _alone(recipe, task, chain(first, rows))
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (recipe, model))
    try:
        left = False
        for share, answer in _answered(pool, chain([first], shares), ahead=processes * _WAITING):
            interrupt.check()
            try:
                yield from answer.result()
            except BrokenProcessPool:
                if not left:
                    say("a process that examined rows has ended; going on without")
                left = True
                yield from _alone(recipe, task, share)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(recipe: Recipe, task: Task, rows: Iterable[Row]) -> Iterator[Parcel]:
    for row in rows:
        interrupt.check()
        yield from packed(examine_row(recipe, task, row))


def _answered(pool: ProcessPoolExecutor, shares: Iterable[Share], *, ahead: int) -> Iterator[tuple[Share, _Answer]]:
    """Yield each share with the answer to it, while so many that follow are being worked on."""
    waiting: deque[tuple[Share, _Answer]] = deque()
    for share in shares:
        answer = _Answer()
        try:
            answer = pool.submit(_examine, share)
        except BrokenProcessPool as error:
            answer.set_exception(error)
        waiting.append((share, answer))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


# --- in the other processes ---

_given: list[tuple[Recipe, Task]] = []


def _begin(recipe: Recipe, model: ModelFolder) -> None:
    """Make the task anew, and leave signals to the process that asks."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_who_asks, daemon=True).start()
    _given.append((recipe, task_for(recipe.data, codec_of(model, recipe.model.chat_markup))))


def _end_with_who_asks() -> None:
    asking = multiprocessing.parent_process()
    assert asking
    asking.join()
    os._exit(1)


def _examine(share: Share) -> list[Parcel]:
    recipe, task = _given[0]
    return [parcel for row in share for parcel in packed(examine_row(recipe, task, row))]
