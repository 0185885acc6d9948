"""Keys and values of rows of different lengths, written once and never moved while a row lives.

transformers' own growing cache joins what it has and what is new, in every layer for every token: it copies everything
it holds to add one column. Here a row has a slot of fixed room and begins at its first column, so a token is written in
place, rows need no padding between them, and what memory is taken is known before the first token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):  # type: ignore[misc]
    """Slots of equal room in every layer. What the next pass reads and writes is said beforehand, by `aim`.

    Args:
        layers: of how many layers keys and values are kept.
        slots: how many rows have room.
        room: how many tokens of each.
    """

    def __init__(self, layers: int, slots: int, room: int) -> None:
        self.slots, self.room = slots, room
        self.rows = slice(0, 0)
        self.columns: slice | torch.Tensor = slice(0, 0)
        self.width = self.seen = 0
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def aim(self, rows: slice, columns: slice | torch.Tensor, width: int, *, new: int) -> None:
        """Let the next pass write `columns` of the slots `rows`, and read the first `width` columns of them.

        Args:
            columns: the same ones for every row, or one for each.
            new: how many tokens of each row the pass brings.
        """
        self.rows, self.columns, self.width, self.seen = rows, columns, width, width - new

    def copy(self, source: int, target: int, columns: int) -> None:
        """Let the row in one slot stand in another too."""
        for kept in self._kept():
            kept[target, :, :columns] = kept[source, :, :columns]

    def beginning(self, columns: int) -> list[torch.Tensor]:
        """Return what the first slot begins with, for `begin`."""
        return [kept[0, :, :columns].clone() for kept in self._kept()]

    def begin(self, rows: slice, beginning: list[torch.Tensor]) -> None:
        """Let rows begin with what another began with."""
        for kept, begun in zip(self._kept(), beginning, strict=True):
            kept[rows, :, : begun.shape[1]] = begun

    @property
    def held_bytes(self) -> int:
        """What all slots take together."""
        return sum(kept.numel() * kept.element_size() for kept in self._kept())

    def _kept(self) -> Iterator[torch.Tensor]:
        for layer in self.layers:
            if layer.is_initialized:  # not so where a layer reads what another one keeps
                yield from (layer.keys, layer.values)


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values [slots, heads, room, size] of one layer."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory; zeros, since what is hidden by adding a low number must be a number itself."""
        self.keys, self.values = (self._room_for(new) for new in (key_states, value_states))
        self.is_initialized = True

    def _room_for(self, new: torch.Tensor) -> torch.Tensor:
        return new.new_zeros(self._cache.slots, new.shape[1], self._cache.room, new.shape[3])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what is new; return a view of what the rows see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        at = self._cache
        mine = kept[at.rows]
        if isinstance(at.columns, slice):
            mine[:, :, at.columns] = new
        else:  # a column of its own for every row
            mine[torch.arange(len(mine), device=mine.device), :, at.columns] = new[:, :, 0]
        return mine[:, :, : at.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a pass sees, and where they begin."""
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        """Return how many tokens of the longest row stand before those of the pass."""
        return self._cache.seen

    def get_max_length(self) -> int:
        """Return the room of a slot."""
        return self._cache.room
