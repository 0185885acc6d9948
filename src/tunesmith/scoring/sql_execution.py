"""Execution accuracy: an SQL answer is right if running it gives what running the reference gives.

Answers are what a model wrote, so they run in `sql_worker.py`, a process of its own that can only read. The system
ends it when a query takes too long, because SQLite cannot be interrupted everywhere: it can parse a line of nested
doublings for hours. And the system bounds its memory.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError, TunesmithError

QUERY_SECONDS = 2.0
MAX_ROWS = 10_000
_WORKER = Path(__file__).with_name("sql_worker.py")


def execution_accuracy(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    database: Path,
    *,
    seconds: float = QUERY_SECONDS,
    max_rows: int = MAX_ROWS,
) -> list[float]:
    """Return 1.0 for every row whose prediction gives the result of its reference (of one of them), else 0.0.

    Results are equal if they have the same rows equally often, in the same order only where the reference has an
    ORDER BY outside of all parentheses; rows that it ties are expected in the order SQLite gives them. Column names do
    not count, the order of columns does. Numbers with a fraction are equal within 1e-6 of their size (1e-9 near 0), an
    integer equals the same float, NULL equals NULL, text never equals a number.

    A prediction fails if it is not exactly one SELECT (WITH before it, comments and a semicolon after it are fine), if
    it does not run, gives other rows, or takes more than `seconds` of processor time or about 1 GB. One surrounding
    Markdown code fence is taken off predictions and references, because chat models write it and people paste it away.

    Args:
        database: an SQLite file, read only, never written.
        seconds: processor time a query may take.
        max_rows: rows a reference may give.

    Raises:
        DataError: the lengths differ, the database is unreadable, or a reference fails, with the number of its row.
    """
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions, but {len(references)} references")
    if not predictions:
        return []
    _check_database(database)
    scores = []
    with _Worker(database, seconds, max_rows) as worker:
        for index, (prediction, some) in enumerate(zip(predictions, references, strict=True)):
            interrupt.check()
            right = [some] if isinstance(some, str) else some
            scores.append(max((_score(worker, index, prediction, one) for one in right), default=0.0))
    return scores


def _score(worker: "_Worker", index: int, prediction: str, reference: str) -> float:
    """Return 1.0 or 0.0 for one row and one of its references; raise DataError if that fails."""
    if reference not in worker.valid_references:
        answer = worker.run(reference)
        if "rows" not in answer:
            raise DataError(
                f"the reference does not run: {answer['failed']}",
                where=f"references[{index}]",
                hint=f"this is what the right answer is compared with: {reference[:200]!r}",
            )
        worker.valid_references.add(reference)
    return float(worker.run(reference, prediction).get("equal", False))


def _check_database(path: Path) -> None:
    """Raise DataError for a file that cannot be read as it stands."""
    if not path.is_file():
        raise DataError("is not a file", where=str(path), hint="execution accuracy needs an SQLite database")
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise DataError(
            "has changes in a write-ahead log that reading would miss",
            where=str(path),
            hint="merge them: sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'",
        )


class _Worker:
    """The process that runs SQL; started again after a query that ended it."""

    def __init__(self, database: Path, seconds: float, max_rows: int) -> None:
        self.valid_references: set[str] = set()  # references that ran
        self._database = str(database.resolve())
        self._settings = json.dumps({"database": self._database, "seconds": seconds, "max_rows": max_rows})
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def run(self, reference: str, prediction: str | None = None) -> dict[str, Any]:
        """Run SQL and return {"rows": count} of the reference, {"equal": bool}, or {"failed": why}."""
        answer = self._exchange({"reference": reference, "prediction": prediction})
        return {"failed": "it takes too long or too much memory"} if answer is None else answer

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Send one line and return the one that comes back; None if the process died of it."""
        process = self._process if self._process and self._process.poll() is None else self._start()
        assert process.stdin
        assert process.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            self._stop()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        """Start the process; raise DataError if it cannot read the database."""
        self._stop()
        command = [sys.executable, "-I", "-S", str(_WORKER), self._settings]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        ready = self._process.stdout.readline()
        if not ready:
            self._stop()
            raise TunesmithError("the process that runs SQL did not start", where=str(_WORKER))
        failed = json.loads(ready).get("failed")
        if failed:
            self._stop()
            raise DataError(f"is not a readable SQLite database ({failed})", where=self._database)
        return self._process

    def _stop(self) -> None:
        if self._process:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None
