"""Generate rows of a question and its SQL query, reproducibly from a seed.

Every reference query is run. A question is kept only if its result has at least one row, is not long, and does not
depend on how ties are ordered. So a prediction with an empty result is never right, and none is wrong because it orders
ties differently.
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
    """Return `count` rows {question, sql, kind, pattern, split, schema}.

    `pattern` is the template of the question, before its fields were filled in. A model tends to answer all rows of a
    pattern right or all wrong, so a verdict counts patterns instead of rows. The patterns of `test` occur in no other
    split.
    """
    return list(rows(count, seed))


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield `count` rows: 80 % train, 5 % valid and 15 % test, shuffled, with equally many rows of each template.

    A template that runs out of new questions has fewer rows. No two rows share a question, and no two splits share a
    query.

    Raises:
        RecipeError: `count` is below 3 (one row per split) or more than the templates can give.
    """
    if count < 3:
        hint = "give at least 3 rows, one for each split"
        raise RecipeError(f"`{NAME}` cannot generate {count} rows", hint=hint, code="generated-rows")
    rng = Random(seed)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        create_tables(connection)
        generator = _RowGenerator(rng, connection)
        drawn = [row for split, size in _sizes(count).items() for row in generator.rows_of_split(split, size)]
    yield from shuffled(rng, drawn)


def is_answerable(connection: sqlite3.Connection, sql: str) -> bool:
    """Return whether the result of a query is not empty, not long, and independent of the order of ties."""
    answer = connection.execute(sql).fetchmany(MAX_ANSWER_ROWS + 1)
    if not 0 < len(answer) <= MAX_ANSWER_ROWS or not any(any(values) for values in answer):
        return False
    ranking = re.search(r" LIMIT (\d+)$", sql)
    if ranking is None:
        return True
    if len(answer) < int(ranking[1]):
        return False  # "the 5 cheapest" in a category of three
    first, last = (f"{sql[: ranking.start()]}, 1 {way}{ranking[0]}" for way in ("ASC", "DESC"))
    return connection.execute(first).fetchall() == connection.execute(last).fetchall()


def _sizes(count: int) -> dict[str, int]:
    """Return {split: rows}. Test and valid come first, because train has the most patterns and values to draw from."""
    sizes = {split: max(1, count * percent // 100) for split, percent in _SPLIT_PERCENT.items()}
    return {**sizes, "train": count - sum(sizes.values())}


class _RowGenerator:
    """Draw rows without repeating a question, and without using a query in two splits."""

    def __init__(self, rng: Random, connection: sqlite3.Connection) -> None:
        self.rng = rng
        self.questions: set[str] = set()
        self.query_splits: dict[str, str] = {}
        self.is_answerable: Callable[[str], bool] = cache(lambda sql: is_answerable(connection, sql))

    def rows_of_split(self, split: str, size: int) -> Iterator[dict[str, str]]:
        """Yield the rows of a split, from each template in turn; drop a template that runs out of new questions."""
        templates = deque(shuffled(self.rng, TEMPLATES))
        generated = 0
        while generated < size:
            if not templates:
                message = f"`{NAME}` can generate only {generated} of {size} {split} rows"
                raise RecipeError(message, hint="reduce `rows`", code="generated-rows")
            template = templates.popleft()
            if row := self._row(template, split):
                templates.append(template)
                generated += 1
                yield row

    def _row(self, template: QueryTemplate, split: str) -> dict[str, str] | None:
        """Return a new row of a template, or None if none was found in `_MAX_ATTEMPTS` draws."""
        for _ in range(_MAX_ATTEMPTS):
            pattern, question, sql = template.draw(self.rng, test=split == "test")
            if question in self.questions or self.query_splits.get(sql, split) != split or not self.is_answerable(sql):
                continue
            self.questions.add(question)
            self.query_splits[sql] = split
            names = {"kind": template.name, "pattern": pattern, "split": split}
            return {"question": question, "sql": sql, **names, "schema": SCHEMA}
        return None
