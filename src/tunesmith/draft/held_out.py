"""Find the validation and test rows that come with training rows: files next to a file, or splits of a dataset."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.find_files import file_format
from tunesmith.data.hub import list_splits
from tunesmith.data.sources import Row, read_rows
from tunesmith.data.split import SPLIT_NAMES
from tunesmith.recipe.data_source import FileSource, HubSource
from tunesmith.tasks.cells import has_cell

_NAMES = {split: SPLIT_NAMES[split] for split in HELD_OUT}
_TRAIN = re.compile(r"(?<![A-Za-z])train(?:ing)?(?![A-Za-z])", re.IGNORECASE)


def find_held_out(source: Mapping[str, Any], columns: set[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return {`valid` or `test`: source} for the held-out rows that come with a source and have its columns.

    Files with several references, such as `summary1`, `summary2` and `summary3` for `summary`, get a `rename` of the
    first one.

    Args:
        source: the keys of `data.source`.
        columns: the columns that the recipe uses, by their names in the source.
        folder: the folder that relative paths start from.
    """
    if "hub" in source:
        splits = list_splits(HubSource(**source), folder=folder)
        named = {split: next((name for name in names if name in splits), None) for split, names in _NAMES.items()}
        return {split: {**source, "split": name} for split, name in named.items() if name and name != source["split"]}
    found, given = {}, source.get("rename", {})
    for split, names in _NAMES.items():
        for name in _siblings(str(source["file"]), names):
            renamed = _renamed(FileSource(file=name), columns, folder) if (folder / name).is_file() else None
            if renamed is not None:
                found[split] = {**source, "file": name}
                if renamed:
                    present = {old: new for old, new in given.items() if old not in renamed.values()}
                    found[split]["rename"] = present | {old: given.get(new, new) for old, new in renamed.items()}
                break
    return found


def numbered_references(sources: Iterable[Mapping[str, Any]], answer: str, folder: Path) -> list[str]:
    """Return the columns of the references of rows whose first numbered column is renamed to `answer`; or none."""
    columns: list[str] = []
    for source in sources:
        stem = next((old[:-1] for old, new in source.get("rename", {}).items() if new == answer and old[-1] == "1"), "")
        names = _names(FileSource(**source), folder) if stem else []
        columns += [name for name in names if name.startswith(stem) and name[len(stem) :].isdecimal()]
    return [answer, *dict.fromkeys(columns)] if columns else []


def _siblings(file: str, names: tuple[str, ...]) -> list[str]:
    """Return the paths at which a file's held-out rows usually are: `train` replaced, or added, or the name alone."""
    path = Path(file)
    stem = path.name
    extension = ""
    while file_format(Path(stem)) or stem.endswith(".gz"):
        stem, extension = Path(stem).stem, Path(stem).suffix + extension
    stems = []
    for name in names:
        if _TRAIN.search(stem):
            stems.append(_TRAIN.sub(name, stem))
        else:
            stems += [f"{stem}{mark}{name}" for mark in "-._"]
            stems.append(name)
    return [(path.parent / f"{each}{extension}").as_posix() for each in stems if each != stem]


def _renamed(source: FileSource, columns: set[str], folder: Path) -> dict[str, str] | None:
    """Return {name: column} of numbered columns that a source has in place of some `columns`; None if it lacks any."""
    try:
        rows = _first_rows(source, folder)
    except DataError:
        return None
    renamed = {}
    for column in columns:
        if not _has(rows, column):
            if not (_has(rows, f"{column}1") and _has(rows, f"{column}2")):
                return None
            renamed[f"{column}1"] = column
    return renamed


def _names(source: FileSource, folder: Path) -> list[str]:
    return list(dict.fromkeys(name for row in _first_rows(source, folder) for name in row.values))


def _first_rows(source: FileSource, folder: Path) -> list[Row]:
    return list(islice(read_rows(source, folder=folder), 100))


def _has(rows: Sequence[Row], column: str) -> bool:
    return any(has_cell(row.values, column) for row in rows)
