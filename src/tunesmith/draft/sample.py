"""Read the first rows of a file, a folder or a dataset on the hub."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.find_files import file_format
from tunesmith.data.remote_files import is_remote
from tunesmith.data.sources import Row, read_rows
from tunesmith.draft.columns import UNSAFE, Column, describe_columns
from tunesmith.recipe.data_source import FileSource, HubSource

MAX_ROWS = 20_000
"""Rows that are looked at; a larger file is read no further."""

_MAX_CHARACTERS = 100_000_000
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


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
    rename = {name: safe for row in rows for name in row.values if (safe := UNSAFE.sub("_", name)) != name}
    if rename:
        rows, is_all = _read({**source, "rename": rename}, folder)
    columns = describe_columns(rows)
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
