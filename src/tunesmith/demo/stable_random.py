"""Draws that stay the same on every platform and Python version.

Python promises that only of `Random.random()`; `choice`, `shuffle` and their like have changed before.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def randbelow(rng: Random, limit: int) -> int:
    """Draw a whole number from 0 to `limit` - 1."""
    return int(rng.random() * limit)


def choice(rng: Random, values: Sequence[T]) -> T:
    """Draw one value."""
    return values[randbelow(rng, len(values))]


def weighted_choice(rng: Random, weights: dict[T, int]) -> T:
    """Draw one key, each as often as its weight says."""
    left = randbelow(rng, sum(weights.values()))
    for value, weight in weights.items():
        left -= weight
        if left < 0:
            return value
    raise ValueError("weights are whole numbers above zero")


def shuffled(rng: Random, values: Iterable[T]) -> list[T]:
    """Return the values in a drawn order."""
    return sorted(values, key=lambda _: rng.random())
