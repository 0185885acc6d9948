"""What a kind of question is, and how one question is drawn from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter

from tunesmith.demo.pools import Value, pools
from tunesmith.demo.stable_random import choice, randbelow


@dataclass(frozen=True, slots=True)
class QueryTemplate:
    """One kind of query with the ways to ask for it.

    A field such as `{city}` or `{city2}` stands for a value of the pool `city`. Fields that share a pool get different
    values, in the pool's order: `BETWEEN {price} AND {price2}` is never the wrong way round.

    Args:
        train: the phrasings of training and validation questions.
        test: the phrasings of test questions; training never sees them.
    """

    name: str
    sql: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields, without repetition."""
        return fields_of(self.sql)

    def draw(self, rng: Random, *, test: bool) -> tuple[str, str, str]:
        """Return the phrasing of one question, the question and its SQL."""
        phrasing = choice(rng, self.test if test else self.train)
        values = _draw_values(rng, self.fields, test=test)
        question = phrasing.format(**{field: value.text for field, value in values.items()})
        return phrasing, question, self.sql.format(**{field: value.sql for field, value in values.items()})


def fields_of(template: str) -> tuple[str, ...]:
    """Return the names of a template's fields, without repetition."""
    return tuple(dict.fromkeys(field for _, field, _, _ in Formatter().parse(template) if field))


def pool_of(field: str) -> str:
    """Return the name of the pool that a field takes its value from."""
    return field.rstrip("0123456789")


def _draw_values(rng: Random, fields: Sequence[str], *, test: bool) -> dict[str, Value]:
    drawn: dict[str, Value] = {}
    for name in dict.fromkeys(map(pool_of, fields)):
        pool = pools()[name]
        values = pool.test if test else pool.train
        sharing = [field for field in fields if pool_of(field) == name]
        places: set[int] = set()
        while len(places) < len(sharing):
            places.add(randbelow(rng, len(values)))
        drawn.update(zip(sharing, (values[place] for place in sorted(places)), strict=True))
    return drawn
