"""Questions with their SQL, as many as asked for and the same for the same seed.

Every reference query has run: a question is kept only if its answer is not empty, is not long, and does not hang on
how ties are broken. So a query that finds nothing is never right, and none is wrong for ordering equals differently.
"""

import contextlib
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from random import Random

from tunesmith.core.errors import RecipeError
from tunesmith.demo.kind import Kind
from tunesmith.demo.questions import KINDS
from tunesmith.demo.shop import SCHEMA, fill
from tunesmith.demo.stable_random import shuffled

NAME = "shop-sql"
LONGEST_ANSWER = 100
_ATTEMPTS = 300
_SHARES = {"test": 15, "valid": 5}


def load(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` rows: question, sql, kind, pattern, split, schema.

    `pattern` is the phrasing that a question was made from, with its fields still open. Rows of one pattern succeed and
    fail together, so a verdict counts patterns, not rows. No pattern of `test` is in another split.
    """
    return list(rows(count, seed))


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield `count` rows, the kinds in equal parts as long as they last, the splits mixed 80 / 5 / 15.

    No two rows share a question, and no two splits share a query.

    Raises:
        RecipeError: `count` is below 3 (one row a split) or above what the kinds can give.
    """
    if count < 3:
        raise RecipeError(f"{NAME} gives at least 3 rows, not {count}", hint="it has three splits")
    rng = Random(seed)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        fill(connection)
        writer = _Writer(rng, connection)
        drawn = [row for split, size in _sizes(count).items() for row in writer.split(split, size)]
    yield from shuffled(rng, drawn)


def is_askable(connection: sqlite3.Connection, sql: str) -> bool:
    """Say whether a query finds something, not too much of it, and the same whichever way ties are broken."""
    answer = connection.execute(sql).fetchmany(LONGEST_ANSWER + 1)
    if not 0 < len(answer) <= LONGEST_ANSWER or not any(any(values) for values in answer):
        return False
    ranking = re.search(r" LIMIT (\d+)$", sql)
    if ranking is None:
        return True
    if len(answer) < int(ranking[1]):
        return False  # "the 5 cheapest" of what has only three
    first, last = (f"{sql[: ranking.start()]}, 1 {way}{ranking[0]}" for way in ("ASC", "DESC"))
    return connection.execute(first).fetchall() == connection.execute(last).fetchall()


def _sizes(count: int) -> dict[str, int]:
    """Return how many rows each split gets; test and valid come first because train has the most to choose from."""
    sizes = {split: max(1, count * percent // 100) for split, percent in _SHARES.items()}
    return {**sizes, "train": count - sum(sizes.values())}


class _Writer:
    """Draws rows and remembers what was asked."""

    def __init__(self, rng: Random, connection: sqlite3.Connection) -> None:
        self.rng = rng
        self.questions: set[str] = set()
        self.split_of: dict[str, str] = {}
        self.askable: Callable[[str], bool] = cache(lambda sql: is_askable(connection, sql))

    def split(self, split: str, size: int) -> Iterator[dict[str, str]]:
        """Yield the rows of a split, one kind after the other, over and over; a kind with no more drops out."""
        kinds = deque(shuffled(self.rng, KINDS))
        given = 0
        while given < size:
            if not kinds:
                raise RecipeError(f"{NAME} has {given} {split} rows, not {size}", hint="ask for fewer rows")
            kind = kinds.popleft()
            if row := self._row(kind, split):
                kinds.append(kind)
                given += 1
                yield row

    def _row(self, kind: Kind, split: str) -> dict[str, str] | None:
        """Return a new row of a kind, or None where the kind has no more."""
        for _ in range(_ATTEMPTS):
            pattern, question, sql = kind.draw(self.rng, test=split == "test")
            if question in self.questions or self.split_of.get(sql, split) != split or not self.askable(sql):
                continue
            self.questions.add(question)
            self.split_of[sql] = split
            names = {"kind": kind.name, "pattern": pattern, "split": split}
            return {"question": question, "sql": sql, **names, "schema": SCHEMA}
        return None
