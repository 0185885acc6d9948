"""The tokenized examples of one split, and the batches made of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tunesmith.core.records import INPUT_IDS, LOSS_WEIGHT, SEQUENCE_LENGTHS, TRAINED, Column, TokenizedExample
from tunesmith.data.token_file import RaggedColumns, columns_from_arrays, to_numpy, tokens_from_columns

if TYPE_CHECKING:  # `plan` needs lengths only, and does not import torch
    import torch

ENCODER_MASK = Column("source_mask", "int64", "ids")
SHARED_SEGMENT, PADDING_SEGMENT = -1, -2
"""Segment ids of the prefix that all segments share, and of padding."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors that one forward pass reads. Unpacked, each line holds one sequence, padded on the right.

    With causal attention no token attends to padding on its right, so an unpacked batch needs no attention mask. A
    packed batch has several segments in its single line.

    Attributes:
        input_ids: [lines, length].
        loss_mask: [lines, length], true for tokens that enter the loss, false for padding.
        segment_ids: [lines, length], the index of each token's sequence in the batch, or SHARED_SEGMENT, or
            PADDING_SEGMENT.
        tokens: tokens of all examples, without padding, before a shared prefix is counted only once.
        positions: [1, length] for a packed batch, counted from the start of each sequence.
        segment_lengths: for a packed batch, the number of tokens in the shared prefix, in the rest of each sequence,
            and in the padding.
        columns: the other columns of the examples: [lines, length] for values per token, [sequences] for values per
            sequence, and [examples, source length] for ids that an encoder reads. ENCODER_MASK is the mask of those
            ids: an encoder is not causal, so it would attend to padding.
        examples: [sequences], the index of each sequence's example in the batch.
    """

    input_ids: "torch.Tensor"
    loss_mask: "torch.Tensor"
    segment_ids: "torch.Tensor"
    tokens: int
    positions: "torch.Tensor | None" = None
    segment_lengths: tuple[int, ...] = ()
    columns: "Mapping[Column, torch.Tensor]" = field(default_factory=dict)
    examples: "torch.Tensor | None" = None

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
        columns = {column: value.to(device) for column, value in self.columns.items()}
        return Batch(**{**values, **moved, "columns": columns})

    def attention_mask(self) -> "torch.Tensor":
        """Return the mask of a packed batch, [1, 1, query, key]: true for the keys that a query attends to.

        Those are the shared prefix and the earlier tokens of its own segment. Padding attends to padding, because a
        query without keys would give NaN.
        """
        segments = self.segment_ids[0]
        same = segments[:, None] == segments
        return (same | (segments == SHARED_SEGMENT)).tril()[None, None]


class _Segment(NamedTuple):
    """The location of a sequence in a batch: the positions from `start` to `end` of a line."""

    line: int
    sequence: int
    start: int
    end: int


class TokenDataset:
    """The tokenized examples of one split: a flat array for each column, and the offsets of the examples.

    An example holds one sequence, or several if it has the column SEQUENCE_LENGTHS.

    Args:
        source: the file, or the columns that it would have.

    Attributes:
        lengths: the tokens that a model reads of each example, in encoder and decoder together [examples].
        columns: the columns that the examples have.
    """

    def __init__(self, source: Path | RaggedColumns) -> None:
        arrays = load_file(source) if isinstance(source, Path) else to_numpy(source)
        self._columns = columns_from_arrays(arrays)
        self._ids, self._trained = self._columns[INPUT_IDS].values, self._columns[TRAINED].values
        self._offsets: NDArray[np.int64] = arrays["offsets"]
        self._encoder_ids = {column: ragged for column, ragged in self._columns.items() if column.per == "ids"}
        self._encoder_lengths = {column: np.diff(ragged.offsets) for column, ragged in self._encoder_ids.items()}
        # The offset of each sequence, and the index of each example's first sequence.
        self._starts, self._first = self._offsets, np.arange(len(self._offsets))
        if sequence_lengths := self._columns.get(SEQUENCE_LENGTHS):
            self._starts = np.concatenate([[0], np.cumsum(sequence_lengths.values, dtype=np.int64)])
            self._first = sequence_lengths.offsets
        self._sequence_lengths: NDArray[np.int64] = np.diff(self._starts)
        self.lengths: NDArray[np.int64] = sum(self._encoder_lengths.values(), np.diff(self._offsets))
        self.columns: frozenset[Column] = frozenset(self._columns)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """The number of positions that a model needs to read every example, in its encoder or in its decoder."""
        return max(int(lengths.max(initial=0)) for lengths in (self._sequence_lengths, *self._encoder_lengths.values()))

    @property
    def max_token_id(self) -> int:
        """The highest token id of any example, -1 if there are none."""
        encoder = (ragged.values for ragged in self._encoder_ids.values())
        return max(int(ids.max(initial=-1)) for ids in (self._ids, *encoder))

    def count_tokens(self, ids: Collection[int]) -> dict[int, int]:
        """Return how often each of some tokens occurs in all examples, in encoder and decoder together."""
        counts = dict.fromkeys(ids, 0)
        for values in (self._ids, *(ragged.values for ragged in self._encoder_ids.values())):
            found, times = np.unique(values[np.isin(values, list(ids))], return_counts=True)
            for token, count in zip(found.tolist(), times.tolist(), strict=True):
                counts[token] += count
        return counts

    def example(self, row: int, example_id: str) -> TokenizedExample:
        """Return one tokenized example."""
        return tokens_from_columns(example_id, {column: ragged.row(row) for column, ragged in self._columns.items()})

    def trained_tokens(self, rows: Sequence[int]) -> int:
        """Return how many tokens of these rows enter the loss. The first token of a sequence is never predicted."""
        return sum(int(self._trained[self._starts[s] + 1 : self._starts[s + 1]].sum()) for s in self._sequences(rows))

    def trained_weight(self, rows: Sequence[int]) -> float:
        """Return the sum of the weights of these rows' trained tokens; without LOSS_WEIGHT each token has weight 1."""
        if (weights := self._columns.get(LOSS_WEIGHT)) is None:
            return self.trained_tokens(rows)
        return sum(float(weights.row(row)[0]) * self.trained_tokens([row]) for row in rows)

    def shortest_first(self) -> list[int]:
        """Return all rows sorted by length, with the rows without trained tokens at the end."""
        trained = np.concatenate([[0], np.cumsum(self._trained, dtype=np.int64)])
        starts, ends = self._offsets[:-1], self._offsets[1:]
        untrained = trained[ends] == trained[np.minimum(starts + 1, ends)]
        return [int(row) for row in np.lexsort((self.lengths, untrained))]

    def sequence_lengths(self, rows: Sequence[int]) -> list[int]:
        """Return the tokens of each sequence of these rows, with the encoder's."""
        if SEQUENCE_LENGTHS not in self.columns:
            return [int(self.lengths[row]) for row in rows]
        return [int(self._sequence_lengths[sequence]) for sequence in self._sequences(rows)]

    def batch(self, rows: Sequence[int], pad_id: int) -> Batch:
        """Return rows as a batch with one line for each sequence, padded to the bucket of the longest."""
        sequences = self._sequences(rows)
        segments = [_Segment(line, s, 0, int(self._sequence_lengths[s])) for line, s in enumerate(sequences)]
        return self._fill(rows, segments, (len(sequences), self.padded_length(rows)), pad_id)

    def padded_length(self, rows: Sequence[int], column: Column = INPUT_IDS) -> int:
        """Return the padded length of these rows' sequences, or of their ids for an encoder; 0 without such ids."""
        if column == INPUT_IDS:
            lengths, chosen = self._sequence_lengths, self._sequences(rows)
        elif column in self._encoder_lengths:
            lengths, chosen = self._encoder_lengths[column], list(rows)
        else:
            return 0
        # Never longer than the longest of all rows: padding must not exceed the model's last position.
        return min(bucket(int(lengths[chosen].max())), int(lengths.max()))

    def packed(self, rows: Sequence[int], pad_id: int, *, shared: int = 0, multiple: int = 16) -> Batch:
        """Return rows packed in one line, with the positions and segments that keep them apart.

        Args:
            shared: the length of the prefix that all these sequences share and that is stored once, see
                `shared_prefix_length`.
            multiple: pad the line to a multiple of this length.
        """
        length = round_up(self.packed_tokens(rows, shared), multiple)
        segments, start = [], shared
        for sequence in self._sequences(rows):
            end = start + int(self._sequence_lengths[sequence]) - shared
            segments.append(_Segment(0, sequence, start, end))
            start = end
        batch = self._fill(rows, segments, (1, length), pad_id, shared=shared)
        positions = np.zeros((1, length), np.int64)
        positions[0, :shared] = np.arange(shared)
        for segment in segments:
            positions[0, segment.start : segment.end] = np.arange(shared, shared + segment.end - segment.start)
        lengths = (shared, *(segment.end - segment.start for segment in segments), length - start)
        return replace(batch, positions=_tensor(positions), segment_lengths=lengths)

    def packed_tokens(self, rows: Sequence[int], shared: int) -> int:
        """Return how many tokens these rows have when packed, counting the `shared` first ones once."""
        return shared + sum(length - shared for length in self.sequence_lengths(rows))

    def shared_prefix_length(self, row: int, other: int) -> int:
        """Return the length of the prefix that all sequences of two rows share.

        It ends before the first trained token and before the token that predicts it.
        """
        return min(self._common_prefix(*pair) for pair in pairwise(self._sequences((row, other))))

    def _common_prefix(self, first: int, second: int) -> int:
        a, b = self._slice(self._ids, first), self._slice(self._ids, second)
        limit = min(len(a), len(b), self._prompt_length(first), self._prompt_length(second))
        differing = np.flatnonzero(a[:limit] != b[:limit])
        return int(differing[0]) if len(differing) else limit

    def _prompt_length(self, sequence: int) -> int:
        """Return how many tokens precede the one that predicts the first trained token."""
        trained = np.flatnonzero(self._slice(self._trained, sequence)[1:])
        return int(trained[0]) if len(trained) else int(self._sequence_lengths[sequence]) - 1

    def _sequences(self, rows: Sequence[int]) -> list[int]:
        return [sequence for row in rows for sequence in range(self._first[row], self._first[row + 1])]

    def _slice(self, flat: NDArray[Any], sequence: int) -> NDArray[Any]:
        return flat[self._starts[sequence] : self._starts[sequence + 1]]

    def _fill(
        self, rows: Sequence[int], segments: Sequence[_Segment], shape: tuple[int, int], pad_id: int, *, shared: int = 0
    ) -> Batch:
        """Return a batch with each sequence in its segment, without its first `shared` tokens, which start line 0."""
        segment_ids = np.full(shape, PADDING_SEGMENT, np.int64)
        segment_ids[0, :shared] = SHARED_SEGMENT
        for index, (line, _, start, end) in enumerate(segments):
            segment_ids[line, start:end] = index

        def fill(flat: NDArray[Any], padding: Any) -> NDArray[Any]:
            filled = np.full(shape, padding, np.int64 if flat is self._ids else flat.dtype)
            filled[0, :shared] = self._slice(flat, segments[0].sequence)[:shared]
            for line, sequence, start, end in segments:
                filled[line, start:end] = self._slice(flat, sequence)[shared:]
            return filled

        loss_mask = fill(self._trained, 0).astype(bool)
        for line, _, start, _ in segments:
            # Nothing precedes this token, or the shared prefix does, and no trained token is predicted from that.
            loss_mask[line, start : start + 1] = False
        loss_mask[0, :shared] = False
        columns: dict[Column, torch.Tensor] = {}
        for column, ragged in self._columns.items():
            if column.per == "ids":
                columns |= self._encoder_batch(column, rows, pad_id)
            elif column.per == "sequence" and column != SEQUENCE_LENGTHS:
                columns[column] = _tensor(np.concatenate([ragged.row(row) for row in rows]))
            elif column not in (INPUT_IDS, TRAINED, SEQUENCE_LENGTHS):
                columns[column] = _tensor(fill(ragged.values, 0))
        examples = np.repeat(np.arange(len(rows)), self._first[np.add(rows, 1)] - self._first[list(rows)])
        ids, tokens = fill(self._ids, pad_id), int(self.lengths[list(rows)].sum())
        return Batch(
            _tensor(ids), _tensor(loss_mask), _tensor(segment_ids), tokens, columns=columns, examples=_tensor(examples)
        )

    def _encoder_batch(self, column: Column, rows: Sequence[int], pad_id: int) -> "dict[Column, torch.Tensor]":
        """Return the ids for an encoder and their mask. It follows from lengths, so text may contain `pad_id`."""
        sources = [self._encoder_ids[column].row(row) for row in rows]
        mask = np.arange(self.padded_length(rows, column)) < np.array([len(ids) for ids in sources])[:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = np.concatenate(sources)
        return {column: _tensor(ids), ENCODER_MASK: _tensor(mask.astype(np.int64))}


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(array)


def bucket(length: int) -> int:
    """Return the padded length of a sequence: one of few values, because on a CPU every new shape costs time."""
    step = 16 if length <= 128 else 32 if length <= 256 else 64 if length <= 1024 else 256
    return round_up(length, step)


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a length."""
    return -(-length // multiple) * multiple
