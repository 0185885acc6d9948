"""What has been examined and waits to be chosen: in temporary files, so that memory holds nothing for each token.

Which rows are used is known only when all have been read. Until then a row is its line of the ledger, what tells
whether it says what another says, and a place on the shelf, where its example and tokens lie as they will be written.
"""

import os
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from tunesmith.core.jsonl import json_line
from tunesmith.core.records import INPUT_IDS, TRAINED, Column, TokenizedExample
from tunesmith.data.process_rows import NO_NOTES, LedgerEntry, ProcessedRow, RowNotes
from tunesmith.data.similarity import ShingleIndex, shingles
from tunesmith.data.split import content_hash
from tunesmith.data.token_file import RaggedBytes, RaggedRows, columns_of, to_bytes, tokens_from_columns


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """An examined row, or a block of it, in the bytes that will lie on the shelf; of one that is not used, none.

    `said` is a digest of what the whole row says, and `runs` its runs of words, which come with its first block only.
    """

    entry: LedgerEntry
    remarks: RowNotes = NO_NOTES
    example: bytes = b""
    columns: Mapping[Column, bytes] = field(default_factory=dict)
    said: str = ""
    runs: bytes = b""
    group: str = ""


def encode_row(row: Sequence[ProcessedRow]) -> list[EncodedRow]:
    """Return what became of one row, or of all its blocks, packed."""
    if not row[0].said:
        return [EncodedRow(found.entry, found.remarks) for found in row]
    texts = [turn.text for turn in row[0].said]
    said, runs = content_hash(texts), shingles("\n".join(texts))
    return [_parcel(found, said, b"" if number else runs) for number, found in enumerate(row)]


def _parcel(found: ProcessedRow, said: str, runs: bytes) -> EncodedRow:
    assert found.example
    assert found.tokens
    return EncodedRow(
        found.entry,
        found.remarks,
        json_line(found.example.to_json()).encode(),
        {column: to_bytes(column, values) for column, values in columns_of(found.tokens).items()},
        said,
        runs,
        found.example.group,
    )


@dataclass(frozen=True, slots=True)
class SpooledRow:
    """A row, or a block of it, on the shelf; `place` is None when it is not used.

    `said` is a digest of what the whole row says, `text` the place of its runs of words, and `group` the
    group that it must not be parted from.
    """

    entry: LedgerEntry
    place: int | None = None
    said: str = ""
    text: int = -1
    group: str = ""


class Spool:
    """Examples and tokens, one behind the other in unnamed files, which are gone when this is.

    Args:
        folder: on which disk; None for the system's place for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._files = folder, ExitStack()
        weakref.finalize(self, self._files.close)
        self._examples = self._new_column()
        self._columns = {column: self._new_column() for column in (INPUT_IDS, TRAINED)}
        self.runs = ShingleIndex()
        self._last = (0, -1)  # a row, and the place of its runs of words

    def keep(self, parcel: EncodedRow) -> SpooledRow:
        """Put a parcel on the shelf."""
        entry = parcel.entry
        if not parcel.example:
            return SpooledRow(entry)
        for column in parcel.columns.keys() - self._columns.keys():
            self._columns[column] = self._new_column(before=len(self._examples))
        for column, values in self._columns.items():
            values.put(parcel.columns.get(column, b""))
        place = self._examples.put(parcel.example)
        if entry.row != self._last[0]:  # all blocks of a document say what the document says
            self._last = entry.row, self.runs.add(parcel.runs)
        return SpooledRow(entry, place, parcel.said, self._last[1], sys.intern(parcel.group))

    def examples(self, places: Sequence[int]) -> Iterator[bytes]:
        """Yield the lines of examples, as they are stored in `prepare/examples/*.jsonl`."""
        return self._examples.at(places)

    def tokens(self, place: int, example_id: str) -> TokenizedExample:
        """Return one example as it was rendered."""
        columns = {c: np.frombuffer(next(values.at([place])), c.dtype) for c, values in self._columns.items()}
        return tokens_from_columns(example_id, columns)

    def rows(self, places: Sequence[int]) -> RaggedRows:
        """Return the tokens of some places."""
        return RaggedRows({column: _ragged(column, values, places) for column, values in self._columns.items()})

    def _new_column(self, *, before: int = 0) -> "_Column":
        file = tempfile.TemporaryFile(dir=self._folder, buffering=2**16)  # noqa: SIM115 (closed with the others)
        return _Column(self._files.enter_context(file), before)


def _ragged(column: Column, values: "_Column", places: Sequence[int]) -> RaggedBytes:
    size = np.dtype(column.dtype).itemsize
    return RaggedBytes([length // size for length in values.sizes(places)], lambda: values.at(places))


class _Column:
    """Byte strings one behind the other in a file, the first `before` of them empty."""

    def __init__(self, file: IO[bytes], before: int = 0) -> None:
        self._file = file
        self._ends = array("Q", [0] * (before + 1))

    def __len__(self) -> int:
        return len(self._ends) - 1

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
