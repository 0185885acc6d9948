"""Process rows in several worker processes, and return the results in order.

The first rows are processed here, and the workers start only if there are many more. The result of a row does not
depend on the process, so the files are the same. Workers are fresh interpreters: a fork would copy running threads,
and multiprocessing would run the user's script again. A worker exits when its pipe closes, so also when this process
dies.

    python -m tunesmith.data.workers FILE-DESCRIPTOR        is one worker
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
from tunesmith.tasks.model_tokenizer import load_tokenizer

SERIAL_ROWS = 3000
"""The number of rows to process here before workers start; for fewer rows their start takes longer than they save."""
_CHUNK_ROWS = 32
_MAX_WORKERS = 8  # one process reads the rows and spools the results of this many workers
_CHUNKS_PER_WORKER = 3  # queued, so that no worker waits while results are spooled here

Chunk = tuple[Row, ...]
_Result = Future[list[EncodedRow]]


def worker_count() -> int:
    """Return the number of workers for many rows: one per core; a single worker would save nothing."""
    return min(available_cores(), _MAX_WORKERS)


def process_in_parallel(
    recipe: Recipe, task: Task, model: ModelFolder | None, rows: Iterator[Row]
) -> Iterator[EncodedRow]:
    """Yield the encoded results of rows, in order.

    Args:
        model: the model with the task's tokenizer, for the workers; None processes all rows here.

    Raises:
        DataError: a column is missing.
    """
    count = worker_count() if model else 0
    yield from _process_here(recipe, task, islice(rows, SERIAL_ROWS if count > 1 else None))
    chunks = iter(lambda: tuple(islice(rows, _CHUNK_ROWS)), ())
    if not (first := next(chunks, ())) or model is None:
        return
    with _start_workers(recipe, model, count) as submit:
        has_lost_worker = False
        for chunk, result in _submit_ahead(submit, chain([first], chunks), count * _CHUNKS_PER_WORKER):
            interrupt.check()
            try:
                yield from result.result()
            except (EOFError, OSError):  # the worker died
                if not has_lost_worker:
                    log("a worker process has died; its rows are processed in the main process")
                has_lost_worker = True
                yield from _process_here(recipe, task, chunk)


def _process_here(recipe: Recipe, task: Task, rows: Iterable[Row]) -> Iterator[EncodedRow]:
    for row in rows:
        interrupt.check()
        yield from encode_row(process_row(recipe, task, row))


def _submit_ahead(
    submit: Callable[[Chunk], _Result], chunks: Iterable[Chunk], max_pending: int
) -> Iterator[tuple[Chunk, _Result]]:
    """Yield each chunk with its future, while up to `max_pending` later chunks are already submitted."""
    pending: deque[tuple[Chunk, _Result]] = deque()
    for chunk in chunks:
        pending.append((chunk, submit(chunk)))
        if len(pending) > max_pending:
            yield pending.popleft()
    yield from pending


@contextlib.contextmanager
def _start_workers(recipe: Recipe, model: ModelFolder, count: int) -> Iterator[Callable[[Chunk], _Result]]:
    """Start workers; yield a function that submits a chunk to the next free worker.

    If the worker has died, the future raises EOFError or OSError.
    """
    idle: SimpleQueue[Connection] = SimpleQueue()

    def process_chunk(chunk: Chunk) -> list[EncodedRow]:
        worker = idle.get()
        try:
            worker.send(chunk)
            reply: list[EncodedRow] | Exception = worker.recv()
        finally:
            idle.put(worker)
        if isinstance(reply, Exception):
            raise reply
        return reply

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            ours, theirs = Pipe()
            descriptor = theirs.fileno()
            command = [sys.executable, "-P", "-m", __name__, str(descriptor)]
            with theirs:
                process = subprocess.Popen(  # in its own session, because Ctrl-C is for this process only
                    command, stdin=subprocess.DEVNULL, pass_fds=[descriptor], start_new_session=True
                )
            stack.callback(process.wait)
            stack.enter_context(ours)
            with contextlib.suppress(OSError):
                ours.send((recipe, model))
            idle.put(ours)
        pool = ThreadPoolExecutor(count)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield lambda chunk: pool.submit(process_chunk, chunk)


def _run_worker(connection: Connection) -> None:
    """Process chunks until the connection closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the main process handles them
        signal.signal(number, signal.SIG_IGN)
    recipe, model = connection.recv()
    task = task_for(recipe.data, load_tokenizer(model, recipe.model))
    while True:
        chunk = connection.recv()
        try:
            connection.send([encoded for row in chunk for encoded in encode_row(process_row(recipe, task, row))])
        except Exception as error:
            connection.send(error)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        _run_worker(Connection(int(sys.argv[1])))
