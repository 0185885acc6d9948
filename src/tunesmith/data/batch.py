"""The tensors that one forward pass reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tunesmith.core.records import Column

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
