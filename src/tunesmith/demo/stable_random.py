"""Random draws that are the same on every platform and Python version.

Python promises this only for `Random.random()`; the results of `choice` and `shuffle` have changed between versions.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def randbelow(rng: Random, limit: int) -> int:
    """Draw an integer from 0 to `limit` - 1."""
    return int(rng.random() * limit)


def choice(rng: Random, values: Sequence[T]) -> T:
    """Draw one value."""
    return values[randbelow(rng, len(values))]


def weighted_choice(rng: Random, weights: dict[T, int]) -> T:
    """Draw a key of {value: integer weight} with a probability proportional to its weight."""
    remaining = randbelow(rng, sum(weights.values()))
    for value, weight in weights.items():
        remaining -= weight
        if remaining < 0:
            return value
    raise ValueError(f"weights must be integers with a positive sum, not {list(weights.values())}")


def shuffled(rng: Random, values: Iterable[T]) -> list[T]:
    """Return the values in random order."""
    return sorted(values, key=lambda _: rng.random())
