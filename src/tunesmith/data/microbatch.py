"""Split the rows of a step into micro-batches that fit memory and cost the least time.

The split changes speed and memory only: the loss is a sum over tokens, in whichever micro-batch they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunesmith.data.token_dataset import Batch, TokenDataset, bucket, round_up

ENCODER_CANNOT_PACK = "an encoder reads each row separately"
"""The reason why rows of an encoder-decoder model are not packed."""

# The fixed cost of one more forward pass, in tokens: every layer is launched once more.
_PASS_OVERHEAD = 96
# The sequence length at which attention costs as much as the rest of a layer. By the number of multiplications that is
# about 3,000 at hidden size 576. Half of it is a guess, because the small matrix products of attention run slower.
_ATTENTION_LENGTH = 1500
_UNLIMITED = 2**31

Packing = Literal["auto", "always", "never"]


class MicroBatch(NamedTuple):
    """The rows of one forward pass. They are packed if `shared`, the length of their common prefix, is not None."""

    rows: tuple[int, ...]
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class MicroBatchPolicy:
    """The limits and options that decide how rows are split into micro-batches.

    Attributes:
        max_tokens: padded tokens per forward pass. A single row may exceed it.
        rows: rows per forward pass; None chooses the cheapest split.
        packing: whether to pack rows into one sequence: `never`, `always`, or only if it is cheaper (`auto`).
        share_prefix: compute the common prefix of packed rows once. Not with dropout, whose mask differs by row.
        packed_attention: compute the attention of each packed row separately instead of masking the whole sequence.
        attention_window: number of previous tokens that a token attends to. They are counted within its row with
            `packed_attention`, otherwise within the packed sequence.
        pad_multiple: pad packed sequences to a multiple of this length.
    """

    max_tokens: int
    rows: int | None = None
    packing: Packing = "never"
    share_prefix: bool = True
    packed_attention: bool = False
    attention_window: int = _UNLIMITED
    pad_multiple: int = 32

    def __str__(self) -> str:
        size = f"{self.rows} rows" if self.rows else f"up to {self.max_tokens:,} tokens"
        packing = {"never": "not packed", "auto": "packed if that is cheaper", "always": "packed"}
        return f"{size} per forward pass, {packing[self.packing]}"

    def batches(
        self, tokens: TokenDataset, rows: Sequence[int], pad_id: int
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """Yield the rows and the batch of each micro-batch."""
        for chosen, shared in self.split(tokens, rows):
            if shared is None:
                yield chosen, tokens.batch(chosen, pad_id)
            else:
                yield chosen, tokens.packed(chosen, pad_id, shared=shared, multiple=self.pad_multiple)

    def split(self, tokens: TokenDataset, rows: Sequence[int]) -> list[MicroBatch]:
        """Split rows into micro-batches, longest rows first."""
        order = sorted(rows, key=lambda row: -int(tokens.lengths[row]))
        micro_batches: list[MicroBatch] = []
        if self.rows is not None:
            while order:
                *_, (_, micro_batch) = self._candidates(tokens, order[: self.rows])
                micro_batches.append(micro_batch)
                order = order[len(micro_batch.rows) :]
            return micro_batches
        # Shortest path over the sorted rows: costs[i] is the least cost of the rows from i to the end.
        costs = [float("inf")] * len(order) + [0.0]
        choices = [MicroBatch(())] * len(order)
        for i in range(len(order) - 1, -1, -1):
            for cost, micro_batch in self._candidates(tokens, order[i:]):
                rest = costs[i + len(micro_batch.rows)]
                if cost + rest < costs[i]:
                    costs[i], choices[i] = cost + rest, micro_batch
        i = 0
        while i < len(order):
            micro_batches.append(choices[i])
            i += len(choices[i].rows)
        return micro_batches

    def _candidates(self, tokens: TokenDataset, order: Sequence[int]) -> Iterator[tuple[float, MicroBatch]]:
        """Yield the cost and the cheaper form of the first row, of the first two rows, and so on while they fit."""
        limit = self.max_tokens if self.rows is None else _UNLIMITED
        count = longest = total = squares = 0  # over all sequences so far
        shared = _UNLIMITED if self.share_prefix else 0
        for number, row in enumerate(order, 1):
            lengths = tokens.sequence_lengths([row])
            count, longest, total = count + len(lengths), max(longest, *lengths), total + sum(lengths)
            squares += sum(length**2 for length in lengths)
            width, rows = bucket(longest), tuple(order[:number])
            forms = []
            if self.packing != "never" and count > 1:
                shared = min(shared, tokens.shared_prefix_length(rows[max(0, number - 2)], row)) if shared else 0
                packed_tokens = total - (count - 1) * shared
                packed = self.packed_length(packed_tokens)
                reach = longest if self.packed_attention else packed_tokens
                if packed <= limit and reach <= self.attention_window:
                    pairs = squares if self.packed_attention else packed**2
                    forms.append((self.cost(packed, pairs), MicroBatch(rows, shared)))
            fits = count * width <= limit and self.packing != "always"
            if fits or (number == 1 and not forms):
                forms.append((self.cost(count * width, count * width**2), MicroBatch(rows)))
            if not forms:
                return
            yield min(forms, key=lambda form: form[0])

    def packed_length(self, tokens: int) -> int:
        """Return the padded length of a packed sequence."""
        return round_up(tokens, self.pad_multiple)

    def cost(self, tokens: int, pairs: int) -> float:
        """Return the cost of a forward pass, in tokens; `pairs` counts the pairs of tokens that attention computes."""
        attention = 0 if self.packing == "always" else pairs / _ATTENTION_LENGTH
        return tokens + attention + _PASS_OVERHEAD
