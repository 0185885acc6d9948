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
from tunesmith.demo import joined_tables, nested_queries, one_table
from tunesmith.demo.query_template import QueryTemplate
from tunesmith.demo.shop import SCHEMA, create_tables
from tunesmith.demo.stable_random import shuffled

NAME = "shop-sql"
TEMPLATES = (*one_table.TEMPLATES, *joined_tables.TEMPLATES, *nested_queries.TEMPLATES)
MAX_ANSWER_ROWS = 100
_MAX_ATTEMPTS = 300
_SPLIT_PERCENT = {"test": 15, "valid": 5}


def load(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` rows: question, sql, kind, pattern, split, schema.

    `pattern` is the phrasing that a question was made from, with its fields still open. Rows of one pattern succeed and
    fail together, so a verdict counts patterns, not rows. No pattern of `test` is in another split.
    """
    return list(rows(count, seed))


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield `count` rows, the templates in equal parts as long as they last, the splits mixed 80 / 5 / 15.

    No two rows share a question, and no two splits share a query.

    Raises:
        RecipeError: `count` is below 3 (one row a split) or above what the templates can give.
    """
    if count < 3:
        raise RecipeError(f"{NAME} gives at least 3 rows, not {count}", hint="it has three splits")
    rng = Random(seed)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        create_tables(connection)
        generator = _RowGenerator(rng, connection)
        drawn = [row for split, size in _sizes(count).items() for row in generator.rows_of_split(split, size)]
    yield from shuffled(rng, drawn)


def has_one_answer(connection: sqlite3.Connection, sql: str) -> bool:
    """Say whether a query finds something, not too much of it, and the same whichever way ties are broken."""
    answer = connection.execute(sql).fetchmany(MAX_ANSWER_ROWS + 1)
    if not 0 < len(answer) <= MAX_ANSWER_ROWS or not any(any(values) for values in answer):
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
    sizes = {split: max(1, count * percent // 100) for split, percent in _SPLIT_PERCENT.items()}
    return {**sizes, "train": count - sum(sizes.values())}


class _RowGenerator:
    """Draws rows and remembers what was asked."""

    def __init__(self, rng: Random, connection: sqlite3.Connection) -> None:
        self.rng = rng
        self.questions: set[str] = set()
        self.query_splits: dict[str, str] = {}
        self.has_one_answer: Callable[[str], bool] = cache(lambda sql: has_one_answer(connection, sql))

    def rows_of_split(self, split: str, size: int) -> Iterator[dict[str, str]]:
        """Yield the rows of a split, one kind after the other, over and over; a kind with no more drops out."""
        templates = deque(shuffled(self.rng, TEMPLATES))
        given = 0
        while given < size:
            if not templates:
                raise RecipeError(f"{NAME} has {given} {split} rows, not {size}", hint="ask for fewer rows")
            template = templates.popleft()
            if row := self._row(template, split):
                templates.append(template)
                given += 1
                yield row

    def _row(self, template: QueryTemplate, split: str) -> dict[str, str] | None:
        """Return a new row of a template, or None where the kind has no more."""
        for _ in range(_MAX_ATTEMPTS):
            pattern, question, sql = template.draw(self.rng, test=split == "test")
            if question in self.questions or self.query_splits.get(sql, split) != split or not self.has_one_answer(sql):
                continue
            self.questions.add(question)
            self.query_splits[sql] = split
            names = {"kind": template.name, "pattern": pattern, "split": split}
            return {"question": question, "sql": sql, **names, "schema": SCHEMA}
        return None
