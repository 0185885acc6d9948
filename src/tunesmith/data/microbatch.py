"""How the rows of a step or a split are cut into forward passes: the division that costs least, and fits.

It changes speed and memory, never what is computed: the loss is a sum over tokens, wherever they stand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunesmith.data.batches import Batch, TokenDataset, bucket, round_up

# What one more forward pass costs beside its tokens, in tokens: starting every layer once more.
_OVERHEAD_TOKENS = 96
# The length at which attention costs as much as all the rest of a layer. Counting multiplications that is about 3,000
# for a hidden size of 576; half of it is a guess, because attention's small products run slower.
_ATTENTION_LENGTH = 1500

Packing = Literal["auto", "always", "never"]


class MicroBatch(NamedTuple):
    """Rows of one forward pass: a sequence each where `shared` is None, else side by side in one sequence."""

    rows: tuple[int, ...]
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class MicroBatchPolicy:
    """The rule by which rows are divided.

    Attributes:
        most_tokens: limit of padded tokens in one forward pass; one row is always allowed.
        rows: rows of each forward pass; None finds the cheapest division.
        packing: whether rows may stand side by side in one sequence: where that is cheaper, always, or never.
        share: whether what rows begin with in common is computed once (not with dropout, which is drawn for each).
        by_row: each row's attention is computed by itself in a packed sequence, instead of over all of it with a mask.
        reach: how many tokens the model's attention reaches over: of one row if by row, else of the whole sequence.
        multiple: of which a packed sequence's length is one.
    """

    most_tokens: int
    rows: int | None = None
    packing: Packing = "never"
    share: bool = True
    by_row: bool = False
    reach: int = 2**31
    multiple: int = 32

    def __str__(self) -> str:
        size = f"{self.rows} rows" if self.rows else f"up to {self.most_tokens:,} tokens"
        side = {"never": "a sequence each", "auto": "side by side where that is cheaper", "always": "side by side"}
        return f"{size} at once, {side[self.packing]}"

    def batches(
        self, tokens: TokenDataset, rows: Sequence[int], pad_id: int
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """Yield the rows of each forward pass and what it reads."""
        for group in self.groups(tokens, rows):
            if group.shared is None:
                yield group.rows, tokens.batch(group.rows, pad_id)
            else:
                yield group.rows, tokens.packed(group.rows, pad_id, shared=group.shared, multiple=self.multiple)

    def groups(self, tokens: TokenDataset, rows: Sequence[int]) -> list[MicroBatch]:
        """Divide rows, longest first."""
        order = sorted(rows, key=lambda row: -int(tokens.lengths[row]))
        groups: list[MicroBatch] = []
        if self.rows is not None:
            while order:
                *_, (_, group) = self._beginning(tokens, order[: self.rows])
                groups.append(group)
                order = order[len(group.rows) :]
            return groups
        # Shortest path over the sorted rows: best[i] is the least cost of the rows from i on.
        best = [float("inf")] * len(order) + [0.0]
        chosen = [MicroBatch(())] * len(order)
        for i in range(len(order) - 1, -1, -1):
            for cost, group in self._beginning(tokens, order[i:]):
                if cost + best[i + len(group.rows)] < best[i]:
                    best[i], chosen[i] = cost + best[i + len(group.rows)], group
        i = 0
        while i < len(order):
            groups.append(chosen[i])
            i += len(chosen[i].rows)
        return groups

    def _beginning(self, tokens: TokenDataset, order: Sequence[int]) -> Iterator[tuple[float, MicroBatch]]:
        """Yield the first row, the first two, and so on as long as they fit, each in its cheaper form with its cost."""
        limit = self.most_tokens if self.rows is None else 2**31
        count = longest = total = squares = 0  # over all sequences so far
        shared = 2**31 if self.share else 0
        for number, row in enumerate(order, 1):
            lengths = tokens.sequence_lengths([row])
            count, longest, total = count + len(lengths), max(longest, *lengths), total + sum(lengths)
            squares += sum(length**2 for length in lengths)
            width, rows = bucket(longest), tuple(order[:number])
            forms = []
            if self.packing != "never" and count > 1:
                shared = min(shared, tokens.shared_tokens(rows[max(0, number - 2)], row)) if shared else 0
                side_by_side = total - (count - 1) * shared
                packed = self.packed_length(side_by_side)
                if packed <= limit and (longest if self.by_row else side_by_side) <= self.reach:
                    forms.append((self.cost(packed, squares if self.by_row else packed**2), MicroBatch(rows, shared)))
            fits = count * width <= limit and self.packing != "always"
            if fits or (number == 1 and not forms):
                forms.append((self.cost(count * width, count * width**2), MicroBatch(rows)))
            if not forms:
                return
            yield min(forms, key=lambda form: form[0])

    def packed_length(self, tokens: int) -> int:
        """Return how long a packed sequence of so many tokens is."""
        return round_up(tokens, self.multiple)

    def cost(self, tokens: int, pairs: int) -> float:
        """Return the cost of a forward pass in tokens: all layers, and attention between so many pairs of tokens."""
        attention = 0 if self.packing == "always" else pairs / _ATTENTION_LENGTH
        return tokens + attention + _OVERHEAD_TOKENS
