"""Tokens on disk -> the rows of each optimizer step -> batches of few shapes.

Which rows a step sees is a pure function of (seed, step): no state has to be saved, and neither the size of a
micro-batch nor the machine changes it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tunesmith.core.files import write_pieces
from tunesmith.core.records import Tokens

if TYPE_CHECKING:  # lengths are asked for by `plan`, which has no need of tensors
    import torch

# Owners of positions that belong to no row of a batch alone.
_SHARED, _PADDING = -1, -2


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass reads: [sequences, length] each.

    `trained` marks the tokens to predict, false at padding. `owner` is the place among the batch's rows of the row that
    a token belongs to. Usually a sequence is a row, padded on the right: with causal attention nothing looks to the
    right, so it needs no mask. Where rows stand side by side in one sequence, `positions` count from the beginning of
    each row, and `parts` says how long the sequence's parts are: what all rows begin with, what each row goes on with,
    and the padding. An encoder looks to the right too: `source_ids` and `source_mask` [rows, source length] are what it
    reads, where there is one.
    """

    input_ids: "torch.Tensor"
    trained: "torch.Tensor"
    owner: "torch.Tensor"
    tokens: int
    positions: "torch.Tensor | None" = None
    parts: tuple[int, ...] = ()
    source_ids: "torch.Tensor | None" = None
    source_mask: "torch.Tensor | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
        return Batch(**{**values, **moved})

    def sees(self) -> "torch.Tensor":
        """Return which tokens (columns) a token (line) may look at where rows share a sequence: [1, 1, length, length].

        Itself and what came before it in its row. Padding sees padding, since nothing at all would give NaN.
        """
        mine = self.owner[0]
        return ((mine[:, None] == mine) | (mine == _SHARED)).tril()[None, None]


class TokenSet:
    """The rendered examples of one split: flat arrays and where each example begins.

    `lengths` are the tokens that a model reads of each example, in its encoder and its decoder together.
    """

    def __init__(self, path: Path) -> None:
        self._keep(load_file(path))

    @classmethod
    def of(cls, examples: "Sequence[Tokens] | FlatRows") -> "TokenSet":
        """Return rendered examples as the file of them would be read."""
        made = cls.__new__(cls)
        made._keep({name: _whole(*column) for name, column in _columns(examples).items()})
        return made

    def _keep(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._ids: NDArray[np.int32] = arrays["input_ids"]
        self._trained: NDArray[np.uint8] = arrays["trained"]
        self._offsets: NDArray[np.int64] = arrays["offsets"]
        self._own: NDArray[np.int64] = np.diff(self._offsets)
        self._sources = _Sources(arrays["source_ids"], arrays["source_offsets"]) if "source_ids" in arrays else None
        self.lengths = self._own + self._sources.lengths if self._sources else self._own

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """How many positions a model must know to read every example, in its encoder or in its decoder."""
        sources = self._sources.lengths if self._sources else self._own
        return max(int(self._own.max(initial=0)), int(sources.max(initial=0)))

    @property
    def highest_id(self) -> int:
        """The highest token id of any example, -1 if there are none."""
        sources = self._sources.highest_id if self._sources else -1
        return max(int(self._ids.max(initial=-1)), sources)

    def example(self, row: int, example_id: str) -> Tokens:
        """Return one example as it was rendered."""
        ids, trained = self._row(self._ids, row).tolist(), self._row(self._trained, row).astype(bool).tolist()
        return Tokens(example_id, tuple(ids), tuple(trained), self._sources.of(row) if self._sources else ())

    def trained_tokens(self, rows: Sequence[int]) -> int:
        """Return how many tokens of these rows enter the loss; the first of a row has nothing before it."""
        return sum(int(self._trained[self._offsets[r] + 1 : self._offsets[r + 1]].sum()) for r in rows)

    def shortest_first(self) -> list[int]:
        """Return all rows by their length, those without a trained token last."""
        trained = np.concatenate([[0], np.cumsum(self._trained, dtype=np.int64)])
        begins, ends = self._offsets[:-1], self._offsets[1:]
        untrained = trained[ends] == trained[np.minimum(begins + 1, ends)]
        return [int(row) for row in np.lexsort((self.lengths, untrained))]

    def batch(self, rows: Sequence[int], pad_id: int) -> Batch:
        """Return rows as one batch, a sequence each, as long as the bucket of the longest."""
        ids, trained, owner = _blank(len(rows), self.padded_length(rows), pad_id)
        for i, row in enumerate(rows):
            end = int(self._own[row])
            ids[i, :end] = self._row(self._ids, row)
            trained[i, 1:end] = self._row(self._trained, row)[1:]
            owner[i, :end] = i
        batch = Batch(_tensor(ids), _tensor(trained), _tensor(owner), self._tokens(rows))
        return self._sources.beside(batch, rows, pad_id) if self._sources else batch

    def padded_length(self, rows: Sequence[int]) -> int:
        """Return how long each sequence of these rows is in one batch."""
        # Never longer than the longest row of all: padding must not go beyond a model's last position.
        return min(bucket(int(self._own[list(rows)].max())), int(self._own.max()))

    def padded_source_length(self, rows: Sequence[int]) -> int:
        """Return the same of what an encoder reads; 0 where there is none."""
        return self._sources.padded_length(rows) if self._sources else 0

    def packed(self, rows: Sequence[int], pad_id: int, *, shared: int = 0, multiple: int = 16) -> Batch:
        """Return rows side by side in one sequence, each seeing only itself.

        Args:
            shared: how many first tokens all these rows have in common, see `shared_tokens`; they stand there once.
            multiple: of which the sequence's length is one.
        """
        length = whole_parts(self.packed_tokens(rows, shared), multiple)
        ids, trained, owner = _blank(1, length, pad_id)
        positions = np.zeros((1, length), np.int64)
        ids[0, :shared], owner[0, :shared] = self._row(self._ids, rows[0])[:shared], _SHARED
        positions[0, :shared] = np.arange(shared)
        start = shared
        for i, row in enumerate(rows):
            end = start + int(self.lengths[row]) - shared
            ids[0, start:end] = self._row(self._ids, row)[shared:]
            trained[0, start + 1 : end] = self._row(self._trained, row)[shared + 1 :]
            owner[0, start:end] = i
            positions[0, start:end] = np.arange(shared, self.lengths[row])
            start = end
        own = (int(self.lengths[row]) - shared for row in rows)
        return Batch(
            _tensor(ids),
            _tensor(trained),
            _tensor(owner),
            self._tokens(rows),
            positions=_tensor(positions),
            parts=(shared, *own, length - start),
        )

    def packed_tokens(self, rows: Sequence[int], shared: int) -> int:
        """Return how many tokens these rows have side by side, the `shared` first ones counted once."""
        return shared + sum(int(self.lengths[row]) - shared for row in rows)

    def shared_tokens(self, row: int, other: int) -> int:
        """Return how many first tokens two rows have in common and do not learn, nor predict what is learned."""
        one, two = self._row(self._ids, row), self._row(self._ids, other)
        most = min(len(one), len(two), self._asked(row), self._asked(other))
        differing = np.flatnonzero(one[:most] != two[:most])
        return int(differing[0]) if len(differing) else most

    def _tokens(self, rows: Sequence[int]) -> int:
        return int(self.lengths[list(rows)].sum())

    def _asked(self, row: int) -> int:
        """Return how many tokens stand before the one from which the first trained token is predicted."""
        trained = np.flatnonzero(self._row(self._trained, row)[1:])
        return int(trained[0]) if len(trained) else int(self.lengths[row]) - 1

    def _row(self, flat: NDArray[Any], row: int) -> NDArray[Any]:
        return flat[self._offsets[row] : self._offsets[row + 1]]


class _Sources:
    """What an encoder reads of each example."""

    def __init__(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self._ids = ids
        self._offsets = offsets
        self.lengths: NDArray[np.int64] = np.diff(offsets)

    @property
    def highest_id(self) -> int:
        return int(self._ids.max(initial=-1))

    def of(self, row: int) -> tuple[int, ...]:
        return tuple(self._ids[self._offsets[row] : self._offsets[row + 1]].tolist())

    def beside(self, batch: Batch, rows: Sequence[int], pad_id: int) -> Batch:
        """Return the batch with the sources of its rows; the mask goes by position, whatever id the padding has."""
        mask = np.arange(self.padded_length(rows)) < self.lengths[list(rows)][:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = np.concatenate([self._ids[self._offsets[row] : self._offsets[row + 1]] for row in rows])
        return replace(batch, source_ids=_tensor(ids), source_mask=_tensor(mask.astype(np.int64)))

    def padded_length(self, rows: Sequence[int]) -> int:
        return min(bucket(int(self.lengths[list(rows)].max())), int(self.lengths.max()))


def _blank(rows: int, length: int, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    shape = (rows, length)
    return np.full(shape, pad_id, np.int64), np.zeros(shape, bool), np.full(shape, _PADDING, np.int64)


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Rendered examples row by row as the bytes that a file of them holds, for whoever does not hold all at once.

    `ids`, `trained` and `sources` give them anew whenever they are asked; an example without an encoder has a source of
    length 0.
    """

    lengths: Sequence[int]
    source_lengths: Sequence[int]
    ids: Callable[[], Iterable[bytes]]
    trained: Callable[[], Iterable[bytes]]
    sources: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, examples: Sequence[Tokens]) -> "FlatRows":
        """Return examples that are held."""
        return cls(
            [len(e.input_ids) for e in examples],
            [len(e.source_ids) for e in examples],
            lambda: (np.asarray(e.input_ids, np.int32).tobytes() for e in examples),
            lambda: (np.asarray(e.trained, np.uint8).tobytes() for e in examples),
            lambda: (np.asarray(e.source_ids, np.int32).tobytes() for e in examples),
        )


def write_tokens(path: Path, examples: Sequence[Tokens] | FlatRows) -> None:
    """Write rendered examples as flat arrays: a file as safetensors writes it, which would need all of it in memory."""
    columns = _columns(examples)
    header, begin = {}, 0
    for name, (dtype, count, _) in columns.items():
        end = begin + count * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES_OF_TYPES[dtype], "shape": [count], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    write_pieces(path, chain([start], *(pieces() for _, _, pieces in columns.values())))


_Column = tuple[type[np.generic], int, Callable[[], Iterable[bytes]]]
_NAMES_OF_TYPES: dict[type[np.generic], str] = {np.int64: "I64", np.int32: "I32", np.uint8: "U8"}


def _columns(examples: Sequence[Tokens] | FlatRows) -> dict[str, _Column]:
    """Return {name: (type, length, its bytes)} of each array, in the order of safetensors: the widest types first."""
    rows = examples if isinstance(examples, FlatRows) else FlatRows.of(examples)
    total, sources = sum(rows.lengths), sum(rows.source_lengths)
    columns: dict[str, _Column] = {"offsets": _offsets(rows.lengths)}
    if sources:
        columns["source_offsets"] = _offsets(rows.source_lengths)
    columns["input_ids"] = np.int32, total, rows.ids
    if sources:
        columns["source_ids"] = np.int32, sources, rows.sources
    columns["trained"] = np.uint8, total, rows.trained
    return columns


def _offsets(lengths: Sequence[int]) -> _Column:
    return np.int64, len(lengths) + 1, lambda: [np.cumsum([0, *lengths], dtype=np.int64).tobytes()]


def _whole(dtype: type[np.generic], count: int, pieces: Callable[[], Iterable[bytes]]) -> NDArray[Any]:
    return np.frombuffer(b"".join(pieces()), dtype, count)


def bucket(length: int) -> int:
    """Return the padded length of a row: few values, because every new shape costs on a CPU."""
    step = 16 if length <= 128 else 32 if length <= 256 else 64 if length <= 1024 else 256
    return whole_parts(length, step)


def whole_parts(length: int, multiple: int) -> int:
    """Return a length made whole: the least that is a multiple of a number, and no shorter."""
    return -(-length // multiple) * multiple


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def rows_of_step(step: int, *, rows: int, examples_per_step: int, total_examples: int, seed: int) -> list[int]:
    """Return the rows of a step (counted from 0); the last step of a run may have fewer."""
    first = step * examples_per_step
    last = min(first + examples_per_step, total_examples)
    return [int(_order(seed, position // rows, rows)[position % rows]) for position in range(first, last)]
