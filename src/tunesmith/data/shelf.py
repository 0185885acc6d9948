"""What has been examined and waits to be chosen: in temporary files, so that memory holds nothing for each token.

Which rows are used is known only when all have been read. Until then a row is its line of the ledger, what tells
whether it says what another says, and a place on the shelf, where its example and tokens lie as they will be written.
"""

import os
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
from tunesmith.core.records import Example, Tokens
from tunesmith.data.batches import FlatRows
from tunesmith.data.examine import Entry, Examined
from tunesmith.data.similarity import Runs
from tunesmith.data.split import said_digest


@dataclass(frozen=True, slots=True)
class Kept:
    """A row, or a block of it, on the shelf; `place` is None when it is not used.

    `said` is a digest of what the whole row says, and `text` the place of its runs of words.
    """

    entry: Entry
    place: int | None = None
    said: str = ""
    text: int = -1


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
        self._last: tuple[int, str, int] = (0, "", -1)

    def keep(self, found: Examined) -> Kept:
        """Put what was examined on the shelf."""
        if found.example is None or found.tokens is None:
            return Kept(found.entry)
        place = self._put(found.example, found.tokens)
        if found.entry.row != self._last[0]:  # all blocks of a document say what the document says
            text = self.runs.add("\n".join(turn.text for turn in found.said))
            self._last = found.entry.row, said_digest([turn.text for turn in found.said]), text
        return Kept(found.entry, place, *self._last[1:])

    def _put(self, example: Example, tokens: Tokens) -> int:
        self._ids.put(array("i", tokens.input_ids).tobytes())
        self._trained.put(bytes(tokens.trained))
        self._sources.put(array("i", tokens.source_ids).tobytes())
        return self._examples.put(json_line(example.to_json()).encode())

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
