"""Scores of answers that should be JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.core.errors import DataError

Leaf = tuple[tuple[str | int, ...], str, Any]
"""Path of keys and places, kind, value."""


def json_valid(predictions: Sequence[str]) -> list[float]:
    """Return 1.0 where an answer is JSON (RFC 8259) as it stands: with a code fence or a word around it, it is not."""
    return [float(_parse_leaves(one) is not None) for one in predictions]


def json_field_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the F1 over the leaves of an answer and the best of its references, each leaf with its path and value.

    A leaf is a text, a number, true, false, null, or an empty object or list. 1 and 1.0 are equal, 1 and "1" are not;
    the order of keys does not count, that of lists does. An answer that is not JSON scores 0.

    Raises:
        DataError: a reference is not JSON.
    """
    return [
        max(_f1(_parse_leaves(prediction) or set(), _reference_leaves(text, row)) for text in right)
        for row, (prediction, right) in enumerate(zip(predictions, references, strict=True))
    ]


def _f1(ours: set[Leaf], theirs: set[Leaf]) -> float:
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def _reference_leaves(reference: str, row: int) -> set[Leaf]:
    leaves = _parse_leaves(reference)
    if leaves is None:
        raise DataError(
            "is not JSON", where=f"references[{row}]", hint="`json_field_f1` compares JSON; exact_match any text"
        )
    return leaves


def _parse_leaves(text: str) -> set[Leaf] | None:
    """Return the leaves of a JSON text, None where it is none."""
    try:
        return set(_iterate_leaves(json.loads(text, parse_constant=_refuse_constant), ()))
    except (ValueError, RecursionError):
        return None


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")  # NaN and Infinity, which Python reads


def _iterate_leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _iterate_leaves(below, (*path, key))
    elif isinstance(value, list) and value:
        for place, below in enumerate(value):
            yield from _iterate_leaves(below, (*path, place))
    elif isinstance(value, dict | list):
        yield path, type(value).__name__, None
    else:
        kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
        yield path, kind, value
