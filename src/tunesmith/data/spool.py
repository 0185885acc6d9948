"""What has been examined and waits to be chosen: in temporary files, so that memory holds nothing for each token.

Which rows are used is known only when all have been read. Until then a row is its line of the ledger, what tells
whether it says what another says, and a place on the shelf, where its example and tokens lie as they will be written.
"""

import os
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tunesmith.core.files import json_line
from tunesmith.core.records import Tokens
from tunesmith.data.batches import FlatRows
from tunesmith.data.process_rows import NOTHING, Entry, Examined, Remarks
from tunesmith.data.similarity import Runs, runs_of
from tunesmith.data.split import said_digest


@dataclass(frozen=True, slots=True)
class Parcel:
    """An examined row, or a block of it, in the bytes that will lie on the shelf; of one that is not used, none.

    `said` is a digest of what the whole row says, and `runs` its runs of words, which come with its first block only.
    """

    entry: Entry
    remarks: Remarks = NOTHING
    example: bytes = b""
    ids: bytes = b""
    trained: bytes = b""
    sources: bytes = b""
    said: str = ""
    runs: bytes = b""
    group: str = ""


def packed(row: Sequence[Examined]) -> list[Parcel]:
    """Return what became of one row, or of all its blocks, packed."""
    if not row[0].said:
        return [Parcel(found.entry, found.remarks) for found in row]
    texts = [turn.text for turn in row[0].said]
    said, runs = said_digest(texts), runs_of("\n".join(texts))
    return [_parcel(found, said, b"" if number else runs) for number, found in enumerate(row)]


def _parcel(found: Examined, said: str, runs: bytes) -> Parcel:
    assert found.example
    assert found.tokens
    return Parcel(
        found.entry,
        found.remarks,
        json_line(found.example.to_json()).encode(),
        array("i", found.tokens.input_ids).tobytes(),
        bytes(found.tokens.trained),
        array("i", found.tokens.source_ids).tobytes(),
        said,
        runs,
        found.example.group,
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """A row, or a block of it, on the shelf; `place` is None when it is not used.

    `said` is a digest of what the whole row says, `text` the place of its runs of words, and `group` the
    group that it must not be parted from.
    """

    entry: Entry
    place: int | None = None
    said: str = ""
    text: int = -1
    group: str = ""


class Shelf:
    """Examples and tokens, one behind the other in unnamed files, which are gone when this is.

    Args:
        folder: on which disk; None for the system's place for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        with ExitStack() as opened:
            self._examples, self._ids, self._trained, self._sources = (
                _Column(opened.enter_context(tempfile.TemporaryFile(dir=folder, buffering=2**16))) for _ in range(4)
            )
            weakref.finalize(self, opened.pop_all().close)
        self.runs = Runs()
        self._last = (0, -1)  # a row, and the place of its runs of words

    def keep(self, parcel: Parcel) -> Kept:
        """Put a parcel on the shelf."""
        entry = parcel.entry
        if not parcel.example:
            return Kept(entry)
        self._ids.put(parcel.ids)
        self._trained.put(parcel.trained)
        self._sources.put(parcel.sources)
        place = self._examples.put(parcel.example)
        if entry.row != self._last[0]:  # all blocks of a document say what the document says
            self._last = entry.row, self.runs.add(parcel.runs)
        return Kept(entry, place, parcel.said, self._last[1], sys.intern(parcel.group))

    def examples(self, places: Sequence[int]) -> Iterator[bytes]:
        """Yield the lines of examples, as they are stored in `prepare/examples/*.jsonl`."""
        return self._examples.at(places)

    def tokens(self, place: int, example_id: str) -> Tokens:
        """Return one example as it was rendered."""
        ids, sources = (
            tuple(np.frombuffer(next(column.at([place])), np.int32).tolist()) for column in (self._ids, self._sources)
        )
        return Tokens(example_id, ids, tuple(map(bool, next(self._trained.at([place])))), sources)

    def rows(self, places: Sequence[int]) -> FlatRows:
        """Return the tokens of some places."""
        return FlatRows(
            self._trained.sizes(places),
            [size // 4 for size in self._sources.sizes(places)],
            lambda: self._ids.at(places),
            lambda: self._trained.at(places),
            lambda: self._sources.at(places),
        )


class _Column:
    """Byte strings one behind the other in a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = array("Q", [0])

    def put(self, value: bytes) -> int:
        self._file.write(value)
        self._ends.append(self._ends[-1] + len(value))
        return len(self._ends) - 2

    def sizes(self, places: Sequence[int]) -> list[int]:
        return [self._ends[place + 1] - self._ends[place] for place in places]

    def at(self, places: Sequence[int]) -> Iterator[bytes]:
        self._file.flush()
        number = self._file.fileno()
        for place, size in zip(places, self.sizes(places), strict=True):
            yield os.pread(number, size, self._ends[place]) if size else b""
