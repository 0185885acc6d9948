"""Tokens on disk -> the rows of each optimizer step -> batches of few shapes.

Which rows a step sees is a pure function of (seed, step): no state has to be saved, and neither the size of a
micro-batch nor the machine changes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tunesmith.core.records import INPUT_IDS, SEQUENCE_LENGTHS, TRAINED, Column, TokenizedExample
from tunesmith.data.token_file import RaggedRows, columns_in, flat_arrays, tokens_from

if TYPE_CHECKING:  # lengths are asked for by `plan`, which has no need of tensors
    import torch

ENCODER_MASK = Column("source_mask", "int64", "ids")
# Owners of positions that belong to no row of a batch alone.
_SHARED, _PADDING = -1, -2


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass reads: [sequences, length] each.

    `trained` marks the tokens to predict, false at padding. `owner` is the place among the batch's sequences of the one
    that a token belongs to. Usually a sequence has a line of its own, padded on the right: with causal attention
    nothing looks to the right, so it needs no mask. Where several are packed in one line, `positions` count from the
    beginning of each, and `parts` says how long the line's parts are: the shared prefix, the rest of each sequence, and
    the padding.

    `columns` hold what else the examples store: [sequences, length] if it is a value a token, [sequences] if it is a
    value a sequence, and [sequences, source length] for what an encoder reads, with its mask, since an encoder looks to
    the right too. `examples` [sequences] is the place among the batch's examples of each sequence.
    """

    input_ids: "torch.Tensor"
    trained: "torch.Tensor"
    owner: "torch.Tensor"
    tokens: int
    positions: "torch.Tensor | None" = None
    parts: tuple[int, ...] = ()
    columns: "Mapping[Column, torch.Tensor]" = field(default_factory=dict)
    examples: "torch.Tensor | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
        columns = {column: value.to(device) for column, value in self.columns.items()}
        return Batch(**{**values, **moved, "columns": columns})

    def sees(self) -> "torch.Tensor":
        """Return which tokens (columns) a token (line) may look at where rows share a sequence: [1, 1, length, length].

        Itself and what came before it in its row. Padding sees padding, since nothing at all would give NaN.
        """
        mine = self.owner[0]
        return ((mine[:, None] == mine) | (mine == _SHARED)).tril()[None, None]


class TokenDataset:
    """The rendered examples of one split: a flat array of each column, and where each example begins.

    `lengths` are the tokens that a model reads of each example, in its encoder and its decoder together. `columns` are
    what the examples store.
    """

    def __init__(self, path: Path) -> None:
        self._keep(load_file(path))

    @classmethod
    def of(cls, examples: "Sequence[TokenizedExample] | RaggedRows") -> "TokenDataset":
        """Return rendered examples as the file of them would be read."""
        made = cls.__new__(cls)
        made._keep({name: array.made() for name, array in flat_arrays(examples).items()})
        return made

    def _keep(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._columns = columns_in(arrays)
        self._ids, self._trained = self._columns[INPUT_IDS].values, self._columns[TRAINED].values
        self._offsets: NDArray[np.int64] = arrays["offsets"]
        self._encoder_ids = {column: ragged for column, ragged in self._columns.items() if column.per == "ids"}
        self._encoder_lengths = {column: np.diff(ragged.offsets) for column, ragged in self._encoder_ids.items()}
        # Where each sequence begins, and the first sequence of each example.
        self._begins, self._first = self._offsets, np.arange(len(self._offsets))
        if several := self._columns.get(SEQUENCE_LENGTHS):
            self._begins = np.concatenate([[0], np.cumsum(several.values, dtype=np.int64)])
            self._first = several.offsets
        self._own: NDArray[np.int64] = np.diff(self._begins)
        self.lengths: NDArray[np.int64] = sum(self._encoder_lengths.values(), np.diff(self._offsets))
        self.columns: frozenset[Column] = frozenset(self._columns)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """How many positions a model must know to read every example, in its encoder or in its decoder."""
        return max(int(lengths.max(initial=0)) for lengths in (self._own, *self._encoder_lengths.values()))

    @property
    def highest_id(self) -> int:
        """The highest token id of any example, -1 if there are none."""
        encoder = (ragged.values for ragged in self._encoder_ids.values())
        return max(int(ids.max(initial=-1)) for ids in (self._ids, *encoder))

    def example(self, row: int, example_id: str) -> TokenizedExample:
        """Return one example as it was rendered."""
        return tokens_from(example_id, {column: ragged.of(row) for column, ragged in self._columns.items()})

    def trained_tokens(self, rows: Sequence[int]) -> int:
        """Return how many tokens of these rows enter the loss; the first of a sequence has nothing before it."""
        return sum(int(self._trained[self._begins[s] + 1 : self._begins[s + 1]].sum()) for s in self._sequences(rows))

    def shortest_first(self) -> list[int]:
        """Return all rows by their length, those without a trained token last."""
        trained = np.concatenate([[0], np.cumsum(self._trained, dtype=np.int64)])
        begins, ends = self._offsets[:-1], self._offsets[1:]
        untrained = trained[ends] == trained[np.minimum(begins + 1, ends)]
        return [int(row) for row in np.lexsort((self.lengths, untrained))]

    def sequence_lengths(self, rows: Sequence[int]) -> list[int]:
        """Return how many tokens each sequence of these rows has, with what an encoder reads."""
        if SEQUENCE_LENGTHS not in self.columns:
            return [int(self.lengths[row]) for row in rows]
        return [int(self._own[sequence]) for sequence in self._sequences(rows)]

    def batch(self, rows: Sequence[int], pad_id: int) -> Batch:
        """Return rows as one batch, a line for each sequence, as long as the bucket of the longest."""
        sequences = self._sequences(rows)
        lines = [(i, sequence, 0, int(self._own[sequence])) for i, sequence in enumerate(sequences)]
        return self._filled(rows, lines, (len(sequences), self.padded_length(rows)), pad_id)

    def padded_length(self, rows: Sequence[int], column: Column = INPUT_IDS) -> int:
        """Return the length of these rows' padded sequences, or of their padded encoder ids; 0 if there are none."""
        if column == INPUT_IDS:
            lengths, chosen = self._own, self._sequences(rows)
        elif column in self._encoder_lengths:
            lengths, chosen = self._encoder_lengths[column], list(rows)
        else:
            return 0
        # Never longer than the longest row of all: padding must not go beyond a model's last position.
        return min(bucket(int(lengths[chosen].max())), int(lengths.max()))

    def packed(self, rows: Sequence[int], pad_id: int, *, shared: int = 0, multiple: int = 16) -> Batch:
        """Return rows packed in one line, each sequence seeing only itself.

        Args:
            shared: how many first tokens all these sequences have in common, see `shared_tokens`; they are there once.
            multiple: of which the line's length is one.
        """
        length = round_up(self.packed_tokens(rows, shared), multiple)
        lines, start = [], shared
        for sequence in self._sequences(rows):
            lines.append((0, sequence, start, start + int(self._own[sequence]) - shared))
            start = lines[-1][-1]
        batch = self._filled(rows, lines, (1, length), pad_id, shared=shared)
        positions = np.zeros((1, length), np.int64)
        positions[0, :shared] = np.arange(shared)
        for _, _, begin, end in lines:
            positions[0, begin:end] = np.arange(shared, shared + end - begin)
        parts = (shared, *(end - begin for _, _, begin, end in lines), length - start)
        return replace(batch, positions=_tensor(positions), parts=parts)

    def packed_tokens(self, rows: Sequence[int], shared: int) -> int:
        """Return how many tokens these rows have packed in one line, the `shared` first ones counted once."""
        return shared + sum(length - shared for length in self.sequence_lengths(rows))

    def shared_tokens(self, row: int, other: int) -> int:
        """Return how many first tokens the sequences of two rows have in common.

        None of them is trained, nor is a trained token predicted from one of them.
        """
        return min(self._common(*two) for two in pairwise(self._sequences((row, other))))

    def _common(self, sequence: int, other: int) -> int:
        one, two = self._of(self._ids, sequence), self._of(self._ids, other)
        most = min(len(one), len(two), self._asked(sequence), self._asked(other))
        differing = np.flatnonzero(one[:most] != two[:most])
        return int(differing[0]) if len(differing) else most

    def _asked(self, sequence: int) -> int:
        """Return how many tokens precede the one from which the first trained token is predicted."""
        trained = np.flatnonzero(self._of(self._trained, sequence)[1:])
        return int(trained[0]) if len(trained) else int(self._own[sequence]) - 1

    def _sequences(self, rows: Sequence[int]) -> list[int]:
        return [sequence for row in rows for sequence in range(self._first[row], self._first[row + 1])]

    def _of(self, flat: NDArray[Any], sequence: int) -> NDArray[Any]:
        return flat[self._begins[sequence] : self._begins[sequence + 1]]

    def _filled(
        self,
        rows: Sequence[int],
        lines: Sequence[tuple[int, int, int, int]],
        shape: tuple[int, int],
        pad_id: int,
        *,
        shared: int = 0,
    ) -> Batch:
        """Return a batch of sequences, each given as (line, sequence, begin, end) without its `shared` first tokens."""
        owner = np.full(shape, _PADDING, np.int64)
        owner[0, :shared] = _SHARED
        for place, (line, _, begin, end) in enumerate(lines):
            owner[line, begin:end] = place

        def laid(values: NDArray[Any], blank: Any) -> NDArray[Any]:
            made = np.full(shape, blank, np.int64 if values is self._ids else values.dtype)
            made[0, :shared] = self._of(values, lines[0][1])[:shared]
            for line, sequence, begin, end in lines:
                made[line, begin:end] = self._of(values, sequence)[shared:]
            return made

        trained = laid(self._trained, 0).astype(bool)
        for line, _, begin, _ in lines:
            trained[line, begin : begin + 1] = False  # nothing precedes it, or what is not trained
        trained[0, :shared] = False
        columns: dict[Column, torch.Tensor] = {}
        for column, ragged in self._columns.items():
            if column.per == "ids":
                columns |= self._encoder_batch(column, rows, pad_id)
            elif column.per == "sequence" and column != SEQUENCE_LENGTHS:
                columns[column] = _tensor(np.concatenate([ragged.of(row) for row in rows]))
            elif column not in (INPUT_IDS, TRAINED, SEQUENCE_LENGTHS):
                columns[column] = _tensor(laid(ragged.values, 0))
        of = np.repeat(np.arange(len(rows)), self._first[np.add(rows, 1)] - self._first[list(rows)])
        ids, tokens = _tensor(laid(self._ids, pad_id)), int(self.lengths[list(rows)].sum())
        return Batch(ids, _tensor(trained), _tensor(owner), tokens, columns=columns, examples=_tensor(of))

    def _encoder_batch(self, column: Column, rows: Sequence[int], pad_id: int) -> "dict[Column, torch.Tensor]":
        """Return what an encoder reads and its mask, which goes by position, whatever id the padding has."""
        found = [self._encoder_ids[column].of(row) for row in rows]
        mask = np.arange(self.padded_length(rows, column)) < np.array([len(ids) for ids in found])[:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = np.concatenate(found)
        return {column: _tensor(ids), ENCODER_MASK: _tensor(mask.astype(np.int64))}


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(array)


def bucket(length: int) -> int:
    """Return the padded length of a row: few values, because every new shape costs on a CPU."""
    step = 16 if length <= 128 else 32 if length <= 256 else 64 if length <= 1024 else 256
    return round_up(length, step)


def round_up(length: int, multiple: int) -> int:
    """Return a length made whole: the least that is a multiple of a number, and no shorter."""
    return -(-length // multiple) * multiple


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def batch_indices(step: int, *, rows: int, examples_per_step: int, total_examples: int, seed: int) -> list[int]:
    """Return the rows of a step (counted from 0); the last step of a run may have fewer."""
    first = step * examples_per_step
    last = min(first + examples_per_step, total_examples)
    return [int(_order(seed, position // rows, rows)[position % rows]) for position in range(first, last)]
