"""Hold processed rows in temporary files until it is known which of them are used.

The rows to use are chosen only after all rows are read. Until then memory holds, for each row, its ledger entry, the
hash and the shingles that find duplicates, and an index into the files, which hold its example and tokens in their
final encoding.
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
from tunesmith.data.token_file import RaggedBytes, RaggedColumns, columns_of, to_bytes, tokens_from_columns
from tunesmith.tasks.tool_calls import TOOLS_ROLE


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A processed row, or one block of a document, encoded for the spool.

    Attributes:
        example: empty if the row is not used.
        content_hash: the hash of the whole row, even for a block.
        shingles: the shingles of the whole row; empty for every block but the first.
    """

    entry: LedgerEntry
    notes: RowNotes = NO_NOTES
    example: bytes = b""
    columns: Mapping[Column, bytes] = field(default_factory=dict)
    content_hash: str = ""
    shingles: bytes = b""
    group: str = ""


def encode_row(blocks: Sequence[ProcessedRow]) -> list[EncodedRow]:
    """Encode a processed row, given as one result or as all its blocks."""
    if not blocks[0].row_turns:
        return [EncodedRow(block.entry, block.notes) for block in blocks]
    turns = blocks[0].row_turns
    # Rows that share a long list of tools are not similar for that.
    compared = "\n".join(turn.full_text for turn in turns if turn.role != TOOLS_ROLE)
    row_hash, row_shingles = content_hash([turn.full_text for turn in turns]), shingles(compared)
    return [_encode_block(block, row_hash, b"" if number else row_shingles) for number, block in enumerate(blocks)]


def _encode_block(block: ProcessedRow, row_hash: str, row_shingles: bytes) -> EncodedRow:
    assert block.example and block.tokens
    example = json_line(block.example.to_json()).encode()
    columns = {column: to_bytes(column, values) for column, values in columns_of(block.tokens).items()}
    return EncodedRow(block.entry, block.notes, example, columns, row_hash, row_shingles, block.example.group)


@dataclass(frozen=True, slots=True)
class SpooledRow:
    """A row, or one block of it, in the spool.

    Attributes:
        index: the index in the spool; None if the row is not used.
        content_hash: the hash of the whole row's texts.
        shingles: the index of the whole row's shingles in `Spool.shingles`.
        group: the rows with this group stay in one split.
    """

    entry: LedgerEntry
    index: int | None = None
    content_hash: str = ""
    shingles: int = -1
    group: str = ""


class Spool:
    """Examples and tokens in unnamed temporary files, which are deleted with the object.

    Args:
        folder: a folder on the disk to use; None for the system's temporary folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._files = folder, ExitStack()
        weakref.finalize(self, self._files.close)
        self._examples = self._new_column()
        self._columns = {column: self._new_column() for column in (INPUT_IDS, TRAINED)}
        self.shingles = ShingleIndex()
        self._last = (0, -1)  # the number of the last row, and the index of its shingles

    def add(self, encoded: EncodedRow) -> SpooledRow:
        """Append an encoded row to the files."""
        entry = encoded.entry
        if not encoded.example:
            return SpooledRow(entry)
        for column in encoded.columns.keys() - self._columns.keys():
            self._columns[column] = self._new_column(empty_values=len(self._examples))
        for column, values in self._columns.items():
            values.append(encoded.columns.get(column, b""))
        index = self._examples.append(encoded.example)
        if entry.row != self._last[0]:  # all blocks of a document have the shingles of the document
            self._last = entry.row, self.shingles.add(encoded.shingles)
        return SpooledRow(entry, index, encoded.content_hash, self._last[1], sys.intern(encoded.group))

    def examples(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Yield the lines of examples, as they are stored in `prepare/examples/*.jsonl`."""
        return self._examples.read(indices)

    def tokens(self, index: int, example_id: str) -> TokenizedExample:
        """Return one tokenized example."""
        columns = {c: np.frombuffer(next(values.read([index])), c.dtype) for c, values in self._columns.items()}
        return tokens_from_columns(example_id, columns)

    def rows(self, indices: Sequence[int]) -> RaggedColumns:
        """Return the tokens of several rows, which are read when they are used."""
        return {column: _ragged(column, values, indices) for column, values in self._columns.items()}

    def _new_column(self, *, empty_values: int = 0) -> "_ByteColumn":
        file = tempfile.TemporaryFile(dir=self._folder, buffering=2**16)  # noqa: SIM115 (closed by the finalizer)
        return _ByteColumn(self._files.enter_context(file), empty_values)


def _ragged(column: Column, values: "_ByteColumn", indices: Sequence[int]) -> RaggedBytes:
    item_size = np.dtype(column.dtype).itemsize
    return RaggedBytes([size // item_size for size in values.sizes(indices)], lambda: values.read(indices))


class _ByteColumn:
    """Byte strings, concatenated in a file.

    Args:
        empty_values: number of empty byte strings at the beginning.
    """

    def __init__(self, file: IO[bytes], empty_values: int = 0) -> None:
        self._file = file
        self._offsets = array("Q", [0] * (empty_values + 1))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, value: bytes) -> int:
        self._file.write(value)
        self._offsets.append(self._offsets[-1] + len(value))
        return len(self._offsets) - 2

    def sizes(self, indices: Sequence[int]) -> list[int]:
        return [self._offsets[index + 1] - self._offsets[index] for index in indices]

    def read(self, indices: Sequence[int]) -> Iterator[bytes]:
        self._file.flush()
        descriptor = self._file.fileno()
        for index, size in zip(indices, self.sizes(indices), strict=True):
            yield os.pread(descriptor, size, self._offsets[index]) if size else b""
