"""Execution accuracy: an SQL answer is right if it gives the same result as the reference query.

A model writes the answers, so they run in a separate read-only process, `sql_worker.py`. The operating system limits
its memory and kills it when a query takes too long, because SQLite cannot be interrupted everywhere: it can spend hours
on parsing a chain of subqueries, each of which uses the one before it twice.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError, TunesmithError

QUERY_SECONDS = 2.0
MAX_ROWS = 10_000
_WORKER = Path(__file__).with_name("sql_worker.py")


def execution_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    database: Path,
    *,
    seconds: float = QUERY_SECONDS,
    max_rows: int = MAX_ROWS,
) -> list[float]:
    """Return 1.0 for every row whose prediction gives the same result as one of its references, else 0.0.

    Results are equal if they have the same rows equally often. The order of rows matters only if the reference has an
    ORDER BY outside all parentheses; tied rows are then expected in SQLite's order. The names of columns do not matter,
    their order does. Floats are equal within a relative 1e-6 (an absolute 1e-9 near 0), an integer equals the same
    float, NULL equals NULL, and text never equals a number.

    A prediction fails if it is anything but one SELECT (WITH before it, comments, and a semicolon after it are fine),
    if it does not run, if it gives another result, or if it takes more than `seconds` of processor time or about 1 GB.
    One Markdown code fence around a prediction or reference is removed, because chat models write it and users ignore
    it when they copy the query.

    Args:
        database: an SQLite file; it is never written.
        seconds: limit for the processor time of a query.
        max_rows: limit for the rows of a reference's result.

    Raises:
        DataError: the database is unreadable, or a reference fails; `where` names its row.
    """
    _check_database(database)
    scores = []
    with contextlib.closing(_Worker(database, seconds, max_rows)) as worker:
        for row, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
            interrupt.check()
            scores.append(max(_score(worker, row, prediction, text) for text in texts))
    return scores


def _score(worker: "_Worker", row: int, prediction: str, reference: str) -> float:
    """Return 1.0 or 0.0 for a row and one of its references; raise DataError if the reference fails."""
    if reference not in worker.valid_references:
        answer = worker.run(reference)
        if "rows" not in answer:
            message, where = f"the reference query fails: {answer['failed']}", f"references[{row}]"
            hint = f"correct the query, or drop the row: {reference[:200]!r}"
            raise DataError(message, where=where, hint=hint, code="reference-query-failed")
        worker.valid_references.add(reference)
    return float(worker.run(reference, prediction).get("equal", False))


def _check_database(path: Path) -> None:
    """Raise DataError unless the file exists and holds the whole database."""
    if not path.is_file():
        hint = "`execution` needs an SQLite file"
        raise DataError("is not a file", where=str(path), hint=hint, code="unreadable-database")
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        message = "has changes in a write-ahead log, which is not read"
        hint = "merge them: sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'"
        raise DataError(message, where=str(path), hint=hint, code="unreadable-database")


class _Worker:
    """Run queries in the worker process, and start it again after a query that killed it."""

    def __init__(self, database: Path, seconds: float, max_rows: int) -> None:
        self.valid_references: set[str] = set()
        self._database = str(database.resolve())
        self._settings = json.dumps({"database": self._database, "seconds": seconds, "max_rows": max_rows})
        self._process: subprocess.Popen[str] | None = None

    def run(self, reference: str, prediction: str | None = None) -> dict[str, Any]:
        """Run a reference, or compare a prediction with it.

        Returns:
            {"rows": count} of the reference, {"equal": bool}, or {"failed": reason}.
        """
        process = self._process if self._process and self._process.poll() is None else self._start()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"reference": reference, "prediction": prediction}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            self.close()
            return {"failed": "it takes too long or too much memory"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        """Start the worker process; raise DataError if it cannot read the database."""
        self.close()
        command = [sys.executable, "-I", "-S", str(_WORKER), self._settings]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready:
            message, hint = "the process that runs SQL did not start", "standard error has its message"
            raise TunesmithError(message, where=str(_WORKER), hint=hint, code="sql-worker")
        if failed := json.loads(ready).get("failed"):
            message = f"is not a readable SQLite database ({failed})"
            hint = "name an SQLite file that this user can read"
            raise DataError(message, where=self._database, hint=hint, code="unreadable-database")
        return self._process

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None
