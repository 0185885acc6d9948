"""The safetensors file of a split's tokenized examples: each column of all examples as one flat array.

offsets             where each example starts in the columns with a value per token
input_ids, trained  and other columns with a value per token
source_offsets      where each example starts in `source_ids`; every column of token ids for an encoder has such offsets
sequence_offsets    where each example starts in the columns with a value per sequence, whose arrays have two dimensions
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
# The type names of safetensors and of `array`, in the order in which safetensors writes arrays.
_TYPES = {"int64": ("I64", "q"), "float64": ("F64", "d"), "float32": ("F32", "f"), "int32": ("I32", "i"),
          "uint8": ("U8", "B")}  # fmt: skip


class RaggedBytes(NamedTuple):
    """One column of all examples: the number of values of each example, and a function that yields their bytes."""

    lengths: Sequence[int]
    chunks: Callable[[], Iterable[bytes]]


RaggedColumns = Mapping[Column, RaggedBytes]
"""Tokenized examples as the bytes of their columns, INPUT_IDS and TRAINED included, which need not be in memory."""


def columns_of(example: TokenizedExample) -> dict[Column, tuple[float, ...]]:
    """Return all columns of an example, INPUT_IDS and TRAINED included."""
    return {INPUT_IDS: example.input_ids, TRAINED: example.trained, **example.columns}


def to_bytes(column: Column, values: Sequence[float]) -> bytes:
    """Return the bytes of a column's values in the file."""
    return array(_TYPES[column.dtype][1], cast("Sequence[Any]", values)).tobytes()


def tokens_from_columns(example_id: str, columns: Mapping[Column, NDArray[Any]]) -> TokenizedExample:
    """Return an example from the arrays of its columns, without the empty ones."""
    ids, trained = columns[INPUT_IDS].tolist(), columns[TRAINED].astype(bool).tolist()
    others = {c: tuple(v.tolist()) for c, v in columns.items() if c not in (INPUT_IDS, TRAINED) and len(v)}
    return TokenizedExample(example_id, tuple(ids), tuple(trained), others)


class FlatArray(NamedTuple):
    """One array of the file, whose bytes are made when they are written."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]


def flat_arrays(columns: RaggedColumns) -> dict[str, FlatArray]:
    """Return the arrays of the file by name, in the order of safetensors: the widest types first."""
    arrays = {OFFSETS: _offsets(columns[INPUT_IDS].lengths)}
    for column, values in columns.items():
        count = sum(values.lengths)
        if column.per == "ids":
            if not count:
                continue
            arrays[_offsets_name(column.name)] = _offsets(values.lengths)
        if column.per == "sequence":
            arrays[SEQUENCE_OFFSETS] = _offsets(values.lengths)
        shape = (count, 1) if column.per == "sequence" else (count,)
        arrays[column.name] = FlatArray(column.dtype, shape, values.chunks)
    order = list(_TYPES)
    return dict(sorted(arrays.items(), key=lambda item: (order.index(item[1].dtype), item[0])))


def to_numpy(columns: RaggedColumns) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file by name, read into memory."""
    arrays = flat_arrays(columns).items()
    return {name: np.frombuffer(b"".join(chunks()), dtype).reshape(shape) for name, (dtype, shape, chunks) in arrays}


def write_tokens(path: Path, columns: RaggedColumns) -> None:
    """Write the file byte for byte as safetensors would, but without holding all of it in memory."""
    arrays = flat_arrays(columns)
    header, start = {}, 0
    for name, (dtype, shape, _) in arrays.items():
        end = start + shape[0] * np.dtype(dtype).itemsize
        header[name] = {"dtype": _TYPES[dtype][0], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    write_chunks(path, chain([prefix], *(flat.chunks() for flat in arrays.values())))


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column of all examples: flat `values`, and the offset of each example in them [examples + 1]."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def row(self, row: int) -> NDArray[Any]:
        """Return the values of one example."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def columns_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[Column, Ragged]:
    """Return the columns of a file from its arrays."""
    columns = {}
    for name, values in arrays.items():
        offsets = _offsets_name(name)
        per: Literal["token", "sequence", "ids"] = "token"
        if values.ndim == 2:
            per, offsets = "sequence", SEQUENCE_OFFSETS
        elif offsets != name and offsets in arrays:
            per = "ids"
        elif name.endswith(OFFSETS):
            continue
        else:
            offsets = OFFSETS
        column = Column(name, cast("Any", str(values.dtype)), per)
        columns[column] = Ragged(values.reshape(-1), arrays[offsets])
    return columns


def _offsets_name(name: str) -> str:
    return f"{name.removesuffix('_ids')}_{OFFSETS}" if name.endswith("_ids") else name


def _offsets(lengths: Sequence[int]) -> FlatArray:
    return FlatArray("int64", (len(lengths) + 1,), lambda: [np.cumsum([0, *lengths], dtype=np.int64).tobytes()])
