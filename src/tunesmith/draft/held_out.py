"""Find the validation and test rows that come with training rows: files next to a file, or splits of a dataset."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.find_files import file_format
from tunesmith.data.hub import list_splits
from tunesmith.data.sources import read_rows
from tunesmith.data.split import SPLIT_NAMES
from tunesmith.recipe.data_source import FileSource, HubSource
from tunesmith.tasks.cells import has_cell

_NAMES = {split: SPLIT_NAMES[split] for split in HELD_OUT}
_TRAIN = re.compile(r"(?<![A-Za-z])train(?:ing)?(?![A-Za-z])", re.IGNORECASE)


def find_held_out(source: Mapping[str, Any], columns: set[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return {`valid` or `test`: source} for the held-out rows that come with a source and have its columns.

    Args:
        source: the keys of `data.source`.
        columns: the columns that the recipe uses, by their names in the source.
        folder: the folder that relative paths start from.
    """
    if "hub" in source:
        splits = list_splits(HubSource(**source), folder=folder)
        named = {split: next((name for name in names if name in splits), None) for split, names in _NAMES.items()}
        return {split: {**source, "split": name} for split, name in named.items() if name and name != source["split"]}
    found = {}
    for split, names in _NAMES.items():
        for name in _siblings(str(source["file"]), names):
            if (folder / name).is_file() and _has_columns({**source, "file": name}, columns, folder):
                found[split] = {**source, "file": name}
                break
    return found


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


def _has_columns(source: dict[str, Any], columns: set[str], folder: Path) -> bool:
    """Return whether the first rows of a source have all columns."""
    try:
        rows = list(islice(read_rows(FileSource(**{**source, "rename": {}}), folder=folder), 100))
    except DataError:
        return False
    return all(any(has_cell(row.values, column) for row in rows) for column in columns)
