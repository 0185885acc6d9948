"""The file of a split's rendered examples: every column of all examples as one flat array, in safetensors' format.

offsets             where each example begins in the columns with a value for each token
input_ids, trained  and other columns with a value for each token
source_offsets      where each example begins in `source_ids`; other columns of token ids have offsets of their own too
sequence_offsets    where each example begins in the columns with a value for each sequence, which have two dimensions
"""

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.files import write_chunks
from tunesmith.core.records import INPUT_IDS, TRAINED, Column, TokenizedExample

OFFSETS, SEQUENCE_OFFSETS = "offsets", "sequence_offsets"
# safetensors' name of each type and that of `array`, in the order in which safetensors writes arrays.
_TYPES = {"int64": ("I64", "q"), "float64": ("F64", "d"), "float32": ("F32", "f"), "int32": ("I32", "i"),
          "uint8": ("U8", "B")}  # fmt: skip


class RaggedBytes(NamedTuple):
    """One column of all examples: how many values each has, and a function that yields their bytes from the start."""

    lengths: Sequence[int]
    pieces: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """Rendered examples as the bytes that their file holds, for callers that do not hold all at once.

    `columns` holds INPUT_IDS and TRAINED too.
    """

    columns: Mapping[Column, RaggedBytes]

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample]) -> "RaggedRows":
        """Return examples that are held in memory."""
        rows = [columns_of(example) for example in examples]
        names = dict.fromkeys([INPUT_IDS, TRAINED, *chain.from_iterable(rows)])
        return cls({column: _held(column, [row.get(column, ()) for row in rows]) for column in names})


def columns_of(example: TokenizedExample) -> dict[Column, tuple[float, ...]]:
    """Return all columns of an example."""
    return {INPUT_IDS: example.input_ids, TRAINED: example.trained, **example.columns}


def to_bytes(column: Column, values: Sequence[float]) -> bytes:
    """Return values of a column as its file holds them."""
    return array(_TYPES[column.dtype][1], cast("Sequence[Any]", values)).tobytes()


def tokens_from(example_id: str, columns: Mapping[Column, NDArray[Any]]) -> TokenizedExample:
    """Return an example from the arrays of its columns, without the columns that are empty."""
    ids, trained = columns[INPUT_IDS].tolist(), columns[TRAINED].astype(bool).tolist()
    others = {c: tuple(v.tolist()) for c, v in columns.items() if c not in (INPUT_IDS, TRAINED) and len(v)}
    return TokenizedExample(example_id, tuple(ids), tuple(trained), others)


def _held(column: Column, rows: Sequence[Sequence[float]]) -> RaggedBytes:
    return RaggedBytes([len(values) for values in rows], lambda: (to_bytes(column, values) for values in rows))


class FlatArray(NamedTuple):
    """One array of the file, whose bytes are made when they are needed."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes]]

    def made(self) -> NDArray[Any]:
        """Return the array."""
        return np.frombuffer(b"".join(self.pieces()), self.dtype).reshape(self.shape)


def flat_arrays(examples: Sequence[TokenizedExample] | RaggedRows) -> dict[str, FlatArray]:
    """Return the arrays of the file by name, in the order of safetensors: the widest types first."""
    rows = examples if isinstance(examples, RaggedRows) else RaggedRows.of(examples)
    found = {OFFSETS: _offsets(rows.columns[INPUT_IDS].lengths)}
    for column, values in rows.columns.items():
        count = sum(values.lengths)
        if column.per == "ids":
            if not count:
                continue
            found[_offsets_name(column.name)] = _offsets(values.lengths)
        if column.per == "sequence":
            found[SEQUENCE_OFFSETS] = _offsets(values.lengths)
        shape = (count, 1) if column.per == "sequence" else (count,)
        found[column.name] = FlatArray(column.dtype, shape, values.pieces)
    order = list(_TYPES)
    return dict(sorted(found.items(), key=lambda named: (order.index(named[1].dtype), named[0])))


def write_tokens(path: Path, examples: Sequence[TokenizedExample] | RaggedRows) -> None:
    """Write rendered examples: a file as safetensors writes it, which would need all of it in memory."""
    arrays = flat_arrays(examples)
    header, begin = {}, 0
    for name, (dtype, shape, _) in arrays.items():
        end = begin + shape[0] * np.dtype(dtype).itemsize
        header[name] = {"dtype": _TYPES[dtype][0], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    write_chunks(path, chain([start], *(made.pieces() for made in arrays.values())))


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of all examples: flat `values`, and where each example begins [examples + 1]."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def of(self, row: int) -> NDArray[Any]:
        """Return the values of one example."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def columns_in(arrays: Mapping[str, NDArray[Any]]) -> dict[Column, Ragged]:
    """Return the columns of a file from its arrays."""
    found = {}
    for name, values in arrays.items():
        own = _offsets_name(name)
        per: Literal["token", "sequence", "ids"] = "token"
        if values.ndim == 2:
            per, own = "sequence", SEQUENCE_OFFSETS
        elif own != name and own in arrays:
            per = "ids"
        elif name.endswith(OFFSETS):
            continue
        else:
            own = OFFSETS
        column = Column(name, cast("Any", str(values.dtype)), per)
        found[column] = Ragged(values.reshape(-1), arrays[own])
    return found


def _offsets_name(name: str) -> str:
    return f"{name.removesuffix('_ids')}_{OFFSETS}" if name.endswith("_ids") else name


def _offsets(lengths: Sequence[int]) -> FlatArray:
    return FlatArray("int64", (len(lengths) + 1,), lambda: [np.cumsum([0, *lengths], dtype=np.int64).tobytes()])
