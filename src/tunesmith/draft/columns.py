"""Describe the columns of a sample of rows, also those inside objects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tunesmith.data.row_formats import is_messages
from tunesmith.data.sources import Row
from tunesmith.tasks.base import is_empty_cell
from tunesmith.tasks.cells import InvalidJson, parse_json

UNSAFE = re.compile(r"[{}\[\].:!]|\?$")
"""The marks in a column's name that have a meaning in templates."""

_NO_MEANING = ("0", "text", "value")
_MAX_DEPTH = 4
_MAX_KEYS = 50  # an object with more is a dictionary of data, whose keys are no columns
_IDENTIFIER = re.compile(
    r"(^|[_\W])(id|ids|uuid|guid|idx|index|key|hash|sha|url|uri|link|fname|filename|path|file|date|time|timestamp|created)"
    r"([_\W]|$)|(?<=[a-z])(Id|ID)$"
)


class Column:
    """One column of the rows, or a path into one: how often it is filled, and its values.

    Attributes:
        name: the name for templates, such as `question` or `record.question`.
        values: its values in the rows that have one.
        rows: the number of all rows.
    """

    def __init__(self, name: str, values: list[Any], rows: int) -> None:
        self.name = name
        self.values = values
        self.rows = rows

    @property
    def leaf(self) -> str:
        """The last part of the name that says what it holds, in lower case."""
        return leaf_name(self.name)

    @property
    def is_filled(self) -> bool:
        """Whether no row leaves it empty."""
        return len(self.values) == self.rows

    @property
    def example(self) -> Any:
        """The first value."""
        return self.values[0]

    @cached_property
    def kind(self) -> str:
        """The type of most of its values: `messages`, `nested`, `number` or `text`."""
        if is_messages(self.example):
            return "messages"
        if isinstance(self.example, list | dict | bytes):
            return "nested"
        numbers = sum(_is_number(value) for value in self.values)
        return "number" if numbers > 0.95 * len(self.values) else "text"

    @cached_property
    def distinct(self) -> int:
        """The number of different values."""
        return len({str(value) for value in self.values})

    @cached_property
    def mean_length(self) -> float:
        """The mean number of characters of a value."""
        return sum(len(str(value)) for value in self.values) / len(self.values)

    @property
    def is_identifier(self) -> bool:
        """Whether it identifies or dates rows by its name, or has a different word without blanks in every row."""
        if _IDENTIFIER.search(self.name):
            return self.kind in ("text", "number") and self.mean_length < 100
        is_word = all(" " not in str(value) for value in self.values)
        return len(self.values) > 1 and is_word and self.distinct == len(self.values) and self.mean_length < 60

    @property
    def holds_texts(self) -> bool:
        """Whether its values are lists of texts."""
        return isinstance(self.example, list) and all(isinstance(item, str) for item in self.example)


def leaf_name(name: str) -> str:
    """Return the last part of a path that says what is there, in lower case: `answers` of `answers.text.0`."""
    *parents, last = name.casefold().split(".")
    return leaf_name(".".join(parents)) if parents and last in _NO_MEANING else last


def describe_columns(rows: Sequence[Row], *, reads_json: bool = False) -> dict[str, Column]:
    """Return {name: column} of rows. A column of objects becomes a column for each path into them.

    Args:
        reads_json: whether a text that is a JSON object is an object.
    """
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for row in rows for name in row.values):
        columns |= _expand(name, _filled(row.values.get(name) for row in rows), len(rows), 0, reads_json)
    return columns


def _expand(name: str, values: list[Any], rows: int, depth: int, reads_json: bool) -> dict[str, Column]:
    """Return the column, those inside its objects, or none if it is always empty."""
    if not values:
        return {}
    objects = [_as_object(value) if reads_json else value for value in values]
    if depth < _MAX_DEPTH and all(isinstance(value, Mapping) for value in objects):
        keys = [key for key in dict.fromkeys(key for value in objects for key in value) if not UNSAFE.search(str(key))]
        if 0 < len(keys) <= _MAX_KEYS:
            inner: dict[str, Column] = {}
            for key in keys:
                held = _filled(value.get(key) for value in objects)
                inner |= _expand(f"{name}.{key}", held, rows, depth + 1, reads_json)
            return inner
    column = Column(name, values, rows)
    if column.holds_texts:
        first = f"{name}.0"
        return {name: column, first: Column(first, [value[0] for value in values if value], rows)}
    return {name: column}


def _filled(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if not is_empty_cell(value) and value not in ([], {})]


def _as_object(value: Any) -> Any:
    """Return the object of a text of JSON; any other value unchanged."""
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        return value
    try:
        return parse_json(value, "")
    except InvalidJson:
        return value


def _is_number(value: Any) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return not isinstance(value, bool)
