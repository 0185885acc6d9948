"""Templates of SQL queries with the phrasings of their questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter

from tunesmith.demo.pools import Value, pools
from tunesmith.demo.stable_random import choice, randbelow


@dataclass(frozen=True, slots=True)
class QueryTemplate:
    """A query with open fields, and several questions that ask for it.

    A field such as `{city}` or `{city2}` takes a value from the pool `city`. Fields of the same pool get different
    values in the pool's order, so `BETWEEN {price} AND {price2}` is never reversed.

    Args:
        train: phrasings of the training and validation questions.
        test: phrasings of the test questions; training never sees them.
    """

    name: str
    sql: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The distinct names of the fields."""
        return fields_of(self.sql)

    def draw(self, rng: Random, *, test: bool) -> tuple[str, str, str]:
        """Draw a phrasing and values; return (phrasing, question, SQL)."""
        phrasing = choice(rng, self.test if test else self.train)
        values = _draw_values(rng, self.fields, test=test)
        question = phrasing.format(**{field: value.text for field, value in values.items()})
        return phrasing, question, self.sql.format(**{field: value.sql for field, value in values.items()})


def fields_of(template: str) -> tuple[str, ...]:
    """Return the distinct names of the fields in a query or a phrasing."""
    return tuple(dict.fromkeys(field for _, field, _, _ in Formatter().parse(template) if field))


def pool_of(field: str) -> str:
    """Return the name of the pool that a field takes its value from."""
    return field.rstrip("0123456789")


def _draw_values(rng: Random, fields: Sequence[str], *, test: bool) -> dict[str, Value]:
    drawn: dict[str, Value] = {}
    for name in dict.fromkeys(map(pool_of, fields)):
        pool = pools()[name]
        values = pool.test if test else pool.train
        pool_fields = [field for field in fields if pool_of(field) == name]
        indices: set[int] = set()
        while len(indices) < len(pool_fields):
            indices.add(randbelow(rng, len(values)))
        drawn.update(zip(pool_fields, (values[index] for index in sorted(indices)), strict=True))
    return drawn
