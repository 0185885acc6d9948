"""Rows examined by several processes: the first here, and once there are many, in shares that come back in order.

What becomes of a row does not depend on who looks at it, so the files are the same. Helpers are started anew: a fork
would copy threads that may run here, and what multiprocessing starts runs the user's own script once more. A helper
ends when its connection does, so also with the one that asks, however that ends.

    python -m tunesmith.data.workers FILE-DESCRIPTOR        what a helper is
"""

import contextlib
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

from tunesmith.core import interrupt
from tunesmith.core.progress import log
from tunesmith.data.process_rows import process_row
from tunesmith.data.sources import Row
from tunesmith.data.spool import EncodedRow, encode_row
from tunesmith.estimate.hardware import available_cores
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.chatml import load_tokenizer

SERIAL_ROWS = 3000
"""So many rows are examined before others are asked for help: until then their start would cost more than it saves."""
_SHARE = 32
_MOST_HELPERS = 8  # one process reads and keeps what so many examine
_WAITING = 3  # shares for each helper, so that none waits while others are kept here

Share = tuple[Row, ...]
_Answer = Future[list[EncodedRow]]


def worker_count() -> int:
    """Return how many helpers there are where many rows are shared out: one for each core; one alone is none."""
    return min(available_cores(), _MOST_HELPERS)


def process_in_parallel(
    recipe: Recipe, task: Task, model: ModelFolder | None, rows: Iterator[Row]
) -> Iterator[EncodedRow]:
    """Yield what becomes of rows, in their order.

    Args:
        model: whose tokenizer the task has; None where all is to be done in this process.

    Raises:
        DataError: a column is missing.
    """
    count = worker_count()
    if model is None or count < 2:
        yield from _alone(recipe, task, rows)
        return
    yield from _alone(recipe, task, islice(rows, SERIAL_ROWS))
    shares = iter(lambda: tuple(islice(rows, _SHARE)), ())
    if not (first := next(shares, ())):
        return
    with _helped(recipe, model, count) as ask:
        lost = False
        for share, answer in _ahead(ask, chain([first], shares), count * _WAITING):
            interrupt.check()
            try:
                yield from answer.result()
            except (EOFError, OSError):  # its helper is gone
                if not lost:
                    log("a process that examined rows has ended; its part is done here")
                lost = True
                yield from _alone(recipe, task, share)


def _alone(recipe: Recipe, task: Task, rows: Iterable[Row]) -> Iterator[EncodedRow]:
    for row in rows:
        interrupt.check()
        yield from encode_row(process_row(recipe, task, row))


def _ahead(ask: Callable[[Share], _Answer], shares: Iterable[Share], most: int) -> Iterator[tuple[Share, _Answer]]:
    """Yield each share with the answer to it, while so many that follow are being worked on."""
    waiting: deque[tuple[Share, _Answer]] = deque()
    for share in shares:
        waiting.append((share, ask(share)))
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


@contextlib.contextmanager
def _helped(recipe: Recipe, model: ModelFolder, count: int) -> Iterator[Callable[[Share], _Answer]]:
    """Start helpers; yield what gives a share to the next one that is free.

    Where a helper is gone, its answer is an EOFError or an OSError.
    """
    free: SimpleQueue[Connection] = SimpleQueue()

    def asked(share: Share) -> list[EncodedRow]:
        helper = free.get()
        try:
            helper.send(share)
            found: list[EncodedRow] | Exception = helper.recv()
        finally:
            free.put(helper)
        if isinstance(found, Exception):
            raise found
        return found

    with contextlib.ExitStack() as held:
        for _ in range(count):
            ours, theirs = Pipe()
            number = theirs.fileno()
            command = [sys.executable, "-P", "-m", __name__, str(number)]
            with theirs:  # Ctrl-C is for us
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number], start_new_session=True)
            held.callback(process.wait)
            held.enter_context(ours)
            with contextlib.suppress(OSError):
                ours.send((recipe, model))
            free.put(ours)
        pool = ThreadPoolExecutor(count)
        held.callback(pool.shutdown, cancel_futures=True)
        yield lambda share: pool.submit(asked, share)


def _help(asking: Connection) -> None:
    """Examine shares until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # who asks sees to them
        signal.signal(number, signal.SIG_IGN)
    recipe, model = asking.recv()
    task = task_for(recipe.data, load_tokenizer(model, recipe.model.chat_markup))
    while True:
        share = asking.recv()
        try:
            asking.send([parcel for row in share for parcel in encode_row(process_row(recipe, task, row))])
        except Exception as error:
            asking.send(error)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        _help(Connection(int(sys.argv[1])))
