"""Run untrusted SQL in a separate process: `python -I sql_worker.py SETTINGS`. Uses only the standard library.

Protocol: one JSON object per line. The worker sends {} when it is ready, or {"failed": reason}. It answers each request
{"reference": SQL, "prediction": SQL or null} with {"rows": count}, {"equal": bool} or {"failed": reason}, or it dies:
its limits are such that a query can do nothing worse. It exits at the end of its standard input.
"""

import contextlib
import functools
import json
import math
import re
import resource
import signal
import sqlite3
import sys
from typing import Any, NamedTuple
from urllib.parse import quote

Value = None | int | float | str | bytes
Row = tuple[Value, ...]

_MEMORY_BYTES = 2**30
_HEAP_BYTES = 2**28  # of SQLite, which reports this limit as an error; the limit of the process would abort it
_RESULT_BYTES = 2**25
_TEXT_BYTES = 10**7  # of one value
_SQL_CHARACTERS = 100_000
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
_FENCE = re.compile(r"\s*```(?:sqlite3?|sql)?\s((?:(?!```).)*)```\s*", re.DOTALL | re.IGNORECASE)
_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*(?:.*?\*/|.*))"""
    r"""|'(?:[^']|'')*+'|"(?:[^"]|"")*+"|`(?:[^`]|``)*+`|\[[^\]]*\]|\w+|(?P<open>['"`\[])|.""",
    re.DOTALL,
)


class QueryFailed(Exception):
    """A query is not allowed, does not run, or exceeds a limit."""


class Result(NamedTuple):
    """The result of a query."""

    columns: int
    rows: list[Row]


class Query(NamedTuple):
    """A SELECT statement without code fence and semicolon, and whether its outermost level has an ORDER BY."""

    sql: str
    ordered: bool


def parse(text: str) -> Query:
    """Return the SELECT statement in `text`; raise QueryFailed if the text is anything else.

    `sqlite3` refuses a second statement, and the authorizer limits what the statement may do.
    """
    if len(text) > _SQL_CHARACTERS:
        raise QueryFailed(f"it is longer than {_SQL_CHARACTERS} characters")
    fence = _FENCE.fullmatch(text)
    text = fence.group(1) if fence else text
    tokens = [match for match in _TOKEN.finditer(text) if match["space"] is None]
    while tokens and tokens[-1].group() == ";":
        tokens.pop()
    words = [match.group().upper() for match in tokens]
    if any(match["open"] for match in tokens):
        raise QueryFailed("a quote is not closed")
    if not words or words[0] not in ("SELECT", "WITH"):
        raise QueryFailed("it does not begin with SELECT or WITH")
    return Query(text[: tokens[-1].end()], _has_outer_order_by(words))


def _has_outer_order_by(words: list[str]) -> bool:
    depth = 0
    for word, following in zip(words, [*words[1:], ""], strict=True):
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "ORDER" and following == "BY":
            return True
    return False


class Database:
    """A read-only connection with limits."""

    def __init__(self, path: str, seconds: float) -> None:
        self._seconds = seconds
        self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
        self._connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        for pragma in (f"hard_heap_limit={_HEAP_BYTES}", "temp_store=MEMORY", "query_only=ON", "trusted_schema=OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _TEXT_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_authorizer(_authorize)

    def run(self, sql: str, max_rows: int) -> Result:
        """Return the result of a query; raise QueryFailed if it fails or is too large; die if it takes too long.

        The limit is on processor time, so that a busy machine does not change a score. The operating system measures
        it, because SQLite does not check the time while it parses or evaluates a function.
        """
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        signal.setitimer(signal.ITIMER_REAL, 20 * self._seconds + 20)
        try:
            return self._fetch(sql, max_rows)
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            raise QueryFailed(str(error) or type(error).__name__) from None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _fetch(self, sql: str, max_rows: int) -> Result:
        rows: list[Row] = []
        size = 0
        with contextlib.closing(self._connection.execute(sql)) as cursor:
            columns = len(cursor.description)
            for row in cursor:
                rows.append(row)
                size += 64 * columns + sum(len(value) for value in row if isinstance(value, (str, bytes)))
                if len(rows) > max_rows or size > _RESULT_BYTES:
                    raise QueryFailed(f"it gives more than {max_rows} rows or {_RESULT_BYTES} bytes")
        return Result(columns, rows)


def _authorize(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    allowed = action in _ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and name in _FORBIDDEN_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def results_equal(result: Result, expected: Result, ordered: bool) -> bool:
    """Return whether two results have equal rows equally often, and in the same order if `ordered`."""
    if result.columns != expected.columns or len(result.rows) != len(expected.rows):
        return False
    left, right = (rows if ordered else sorted(rows, key=_sort_key) for rows in (result.rows, expected.rows))
    return all(all(map(_same_value, *pair)) for pair in zip(left, right, strict=True))


def _same_value(left: Value, right: Value) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)) and float in (type(left), type(right)):
        return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-9)
    return type(left) is type(right) and left == right


def _sort_key(row: Row) -> tuple[Any, ...]:
    """Return a key that sorts equal rows to the same position: texts first, then rounded numbers, then exact integers.

    Floats that differ only by rounding errors must not decide the order before the other columns do, but large integers
    that differ by one must.
    """
    exact = [(1, value) if isinstance(value, str) else (2, value) for value in row if isinstance(value, (str, bytes))]
    kinds = [0 if value is None else 1 if isinstance(value, (int, float)) else 2 for value in row]
    numbers = [value for value in row if isinstance(value, (int, float))]
    whole = [value if isinstance(value, int) or value.is_integer() else 0 for value in numbers]
    return kinds, exact, [_rounded(value) for value in numbers], whole


def _rounded(value: int | float) -> float:
    """Round to 18 binary digits, on a grid that is shifted so that common decimal numbers are not on its borders."""
    if not math.isfinite(value):
        return float(value)
    if abs(value) < 1e-9:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(mantissa * 2**18 + 0.3819660113), exponent - 20)  # 18 digits; 2 avoid an overflow


def main() -> None:
    """Answer requests until standard input ends."""
    settings = json.loads(sys.argv[1])
    _set_process_limits()
    try:
        database = Database(settings["database"], settings["seconds"])
    except (sqlite3.Error, MemoryError) as error:
        _send({"failed": str(error)})
        return
    _send({})

    @functools.lru_cache(maxsize=8)
    def expected(reference: str) -> tuple[Query, Result]:
        query = parse(reference)
        return query, database.run(query.sql, settings["max_rows"])

    for line in sys.stdin:
        request = json.loads(line)
        try:
            query, result = expected(request["reference"])
            if request["prediction"] is None:
                _send({"rows": len(result.rows)})
            else:
                predicted = database.run(parse(request["prediction"]).sql, len(result.rows))
                _send({"equal": results_equal(predicted, result, query.ordered)})
        except QueryFailed as error:
            _send({"failed": str(error)})


def _send(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _set_process_limits() -> None:
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the whole job gets them; the parent decides and closes standard input
    for kind, limit in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some of the limits
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
