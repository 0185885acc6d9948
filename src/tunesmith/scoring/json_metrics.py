"""Metrics for answers in JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.core.errors import DataError

Leaf = tuple[tuple[str | int, ...], str, Any]
"""(path of keys and indices, type, value)."""


def json_valid(predictions: Sequence[str], *_: Any) -> list[float]:
    """Return 1.0 for each answer that is JSON (RFC 8259), else 0.0. A code fence or text around the JSON gives 0.0."""
    return [float(_parse_leaves(prediction) is not None) for prediction in predictions]


def json_field_f1(predictions: Sequence[str], references: Sequence[Sequence[str]], *_: Any) -> list[float]:
    """Return F1 over the (path, value) leaves of each answer and of its best reference.

    A leaf is a string, a number, true, false, null, or an empty object or list. 1 equals 1.0 but not "1". The order of
    keys does not matter, the order of lists does. An answer that is not JSON scores 0.

    Raises:
        DataError: a reference is not JSON.
    """
    return [
        max(_f1(_parse_leaves(prediction) or set(), _reference_leaves(reference, row)) for reference in alternatives)
        for row, (prediction, alternatives) in enumerate(zip(predictions, references, strict=True))
    ]


def _f1(prediction: set[Leaf], reference: set[Leaf]) -> float:
    return 2 * len(prediction & reference) / (len(prediction) + len(reference))


def _reference_leaves(reference: str, row: int) -> set[Leaf]:
    leaves = _parse_leaves(reference)
    if leaves is None:
        hint = "`json_field_f1` needs JSON references; `exact_match` compares any text"
        raise DataError("is not JSON", where=f"references[{row}]", hint=hint, code="reference-not-json")
    return leaves


def _parse_leaves(text: str) -> set[Leaf] | None:
    """Return the leaves of a JSON text, None if it is not JSON."""
    try:
        return set(iterate_leaves(parse_json(text)))
    except (ValueError, RecursionError):
        return None


def parse_json(text: str) -> Any:
    """Parse JSON (RFC 8259); raise ValueError, also for NaN and Infinity, or RecursionError."""
    return json.loads(text, parse_constant=refuse_constant)


def refuse_constant(word: str) -> float:
    """Raise ValueError: the argument `parse_constant` of a strict parser."""
    raise ValueError(f"{word} is not JSON")  # NaN and Infinity, which Python's parser accepts


def iterate_leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Yield the leaves of a JSON value: its scalars, and its empty objects and lists. 1 equals 1.0, but not true."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from iterate_leaves(child, (*path, key))
    elif isinstance(value, list) and value:
        for index, child in enumerate(value):
            yield from iterate_leaves(child, (*path, index))
    elif isinstance(value, dict | list):
        yield path, type(value).__name__, None
    else:
        kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
        yield path, kind, value
