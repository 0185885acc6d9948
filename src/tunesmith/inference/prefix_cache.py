"""Keys and values of earlier prompts, for the prompts that begin like them, in the order of their last use.

An adapter changes the keys and values of every token, so a beginning is only reused for the same adapter.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

Ids = Sequence[int]
# A shared beginning is rounded down to a multiple of this, so that prompts that differ early after a system turn still
# have beginnings of one length, and can be read in one pass. A shorter one is not worth a copy.
_STEP = 16


class PrefixCache:
    """Beginnings of rows, each with one tensor [heads, tokens, head size] for the keys and the values of each layer.

    Args:
        max_bytes: the memory of all of them; the one whose last use is longest ago is dropped first.

    Attributes:
        hits: the number of rows of which a beginning was found.
        misses: the number of the others.
        hit_tokens: the tokens that were not read again.
        nbytes: the memory in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = self.hit_tokens = self.nbytes = 0
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], list[torch.Tensor]] = OrderedDict()

    def longest(self, adapter: str | None, ids: Ids) -> tuple[int, list[torch.Tensor]]:
        """Return the longest known beginning of a row, as its number of tokens and its tensors; 0 and [] if none is.

        It is an entire entry, the row without its last token, which has to be read, or a multiple of 16 tokens.
        """
        best, key = 0, None
        row = tuple(ids)
        for candidate in self._entries:
            known_adapter, known = candidate
            if known_adapter != adapter:
                continue
            shared = _shared(known, row)
            limit = min(shared, len(row) - 1)
            length = limit if limit in (len(known), len(row) - 1) else limit // _STEP * _STEP
            if length > best:
                best, key = length, candidate
        if key is None:
            return 0, []
        self._entries.move_to_end(key)
        return best, [tensor[:, :best] for tensor in self._entries[key]]

    def count(self, length: int) -> None:
        """Count a row of which `length` tokens were known."""
        self.hits, self.misses = self.hits + (length > 0), self.misses + (length == 0)
        self.hit_tokens += length

    def add(self, adapter: str | None, ids: Ids, tensors: list[torch.Tensor]) -> None:
        """Keep a beginning; it replaces those that it begins with. Does nothing if it is known or takes too much."""
        row = tuple(ids)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > self.max_bytes or len(row) < _STEP or (adapter, row) in self._entries:
            return
        for known_adapter, known in list(self._entries):
            if known_adapter == adapter and known == row[: len(known)]:
                self._drop((known_adapter, known))
        while self.nbytes + size > self.max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[adapter, row] = tensors
        self.nbytes += size

    def forget(self, adapter: str | None) -> None:
        """Drop the beginnings of an adapter."""
        for key in [key for key in self._entries if key[0] == adapter]:
            self._drop(key)

    def clear(self) -> None:
        """Drop all beginnings."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        tensors = self._entries.pop(key)
        self.nbytes -= sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shared(known: tuple[int, ...], row: tuple[int, ...]) -> int:
    """Return the number of tokens with which both begin, by bisection: comparing slices is faster than a loop."""
    low, high = 0, min(len(known), len(row))
    if known[:high] == row[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if known[low:middle] == row[low:middle]:
            low = middle
        else:
            high = middle
    return low
