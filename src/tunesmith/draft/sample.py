"""Read the first rows of a file, a folder or a dataset on the hub, and describe their columns."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.find_files import file_format
from tunesmith.data.remote_files import is_remote
from tunesmith.data.row_formats import is_messages
from tunesmith.data.sources import Row, read_rows
from tunesmith.recipe.data_source import FileSource, HubSource
from tunesmith.tasks.base import is_empty_cell

MAX_ROWS = 20_000
"""Rows that are looked at; a larger file is read no further."""

_MAX_CHARACTERS = 100_000_000
_UNSAFE = re.compile(r"[{}\[\].:!]|\?$")  # these have a meaning in templates
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_IDENTIFIER = re.compile(
    r"(^|[_\W])(id|ids|uuid|guid|idx|index|key|hash|sha|url|uri|link|fname|filename|path|file|date|time|timestamp|created)"
    r"([_\W]|$)|(?<=[a-z])(Id|ID)$"
)


class Column:
    """One column of the rows: how often it is filled, and its values.

    Attributes:
        values: its values in the rows that have one.
        rows: the number of all rows.
    """

    def __init__(self, name: str, values: list[Any], rows: int) -> None:
        self.name = name
        self.values = values
        self.rows = rows

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


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a source.

    Attributes:
        is_all: whether the source has no other rows.
        rename: {old: new} for columns whose names a template cannot hold; rows and columns have the new ones.
    """

    rows: list[Row]
    is_all: bool
    columns: dict[str, Column]
    rename: dict[str, str]

    @property
    def size(self) -> str:
        """The number of rows, in words."""
        return f"{len(self.rows):,} rows" if self.is_all else f"the first {len(self.rows):,} rows"


def find_source(name: str, folder: Path) -> dict[str, Any]:
    """Return the `data.source` of a recipe in `folder` for files, a folder, or a dataset on the hub.

    Args:
        name: a path or pattern relative to the current folder, an address, or `org/name` of a dataset.
    """
    if is_remote(name):
        return {"file": name}
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return {"hub": path_from(path, folder), "split": "train"}
    if not path.exists() and _HUB.fullmatch(name) and not file_format(path):
        return {"hub": name, "split": "train"}
    return {"file": path_from(path, folder)}


def path_from(path: Path, folder: Path) -> str:
    """Return a path as a recipe in `folder` names it: relative if they are near each other."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return relative if not relative.startswith("../../..") else str(path.absolute())


def read_sample(source: dict[str, Any], folder: Path) -> Sample:
    """Read the first rows of a source.

    Args:
        source: the keys of `data.source`.
        folder: the folder that relative paths start from.

    Raises:
        DataError: the source is missing, damaged, of an unsupported format, or has no rows.
    """
    rows, is_all = _read(source, folder)
    rename = {name: safe for row in rows for name in row.values if (safe := _UNSAFE.sub("_", name)) != name}
    if rename:
        rows, is_all = _read({**source, "rename": rename}, folder)
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row.values):
        values = [value for row in rows if not is_empty_cell(value := row.values.get(name)) and value not in ([], {})]
        if values:
            columns[name] = Column(name, values, len(rows))
    if not columns:
        raise DataError("has rows, but all their cells are empty", where=rows[0].where, code="no-rows")
    return Sample(rows, is_all, columns, rename)


def _read(source: dict[str, Any], folder: Path) -> tuple[list[Row], bool]:
    """Return the first rows of a source, and whether it has no others."""
    rows = read_rows(FileSource(**source) if "file" in source else HubSource(**source), folder=folder)
    taken = list(islice(_within(rows, _MAX_CHARACTERS), MAX_ROWS))
    return taken, next(rows, None) is None


def _within(rows: Iterator[Row], characters: int) -> Iterator[Row]:
    """Yield rows until they have this many characters together."""
    for row in rows:
        yield row
        characters -= sum(len(str(value)) for value in row.values.values())
        if characters < 0:
            return


def _is_number(value: Any) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return not isinstance(value, bool)
