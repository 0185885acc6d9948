"""A KV cache with slots: rows of different lengths, written in place.

The growing cache of transformers concatenates old and new entries in every layer for every token, which copies the
whole cache to add one column. Here each row has a slot of fixed size and starts at its first column. A token is written
in place, rows need no padding between them, and the memory is known before the first token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):  # type: ignore[misc]
    """Slots of equal size in every layer. `set_target` must be called before each forward pass.

    Args:
        layers: number of layers.
        slots: number of slots.
        slot_tokens: tokens per slot.
    """

    def __init__(self, layers: int, slots: int, slot_tokens: int) -> None:
        self.slots, self.slot_tokens = slots, slot_tokens
        self.rows = slice(0, 0)
        self.columns: slice | torch.Tensor = slice(0, 0)
        self.width = self.past = 0
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def set_target(self, rows: slice, columns: slice | torch.Tensor, width: int, *, new: int) -> None:
        """Let the next forward pass write `columns` of the slots `rows`, and read the first `width` columns of them.

        Args:
            columns: the same columns for every row, or a tensor [rows] with one column per row.
            new: number of tokens of each row in the pass.
        """
        self.rows, self.columns, self.width, self.past = rows, columns, width, width - new

    def copy_slot(self, source: int, target: int, columns: int) -> None:
        """Copy the first columns of one slot to another."""
        for tensor in self._tensors():
            tensor[target, :, :columns] = tensor[source, :, :columns]

    def read_columns(self, slot: int, columns: int) -> list[torch.Tensor]:
        """Return copies of the first columns of a slot, to pass to `write_columns`."""
        return [tensor[slot, :, :columns].clone() for tensor in self._tensors()]

    def write_columns(self, slot: int, columns: list[torch.Tensor]) -> None:
        """Write the result of `read_columns` to the beginning of a slot."""
        for tensor, values in zip(self._tensors(), columns, strict=True):
            tensor[slot, :, : values.shape[1]] = values

    @property
    def nbytes(self) -> int:
        """The memory of all slots."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def _tensors(self) -> Iterator[torch.Tensor]:
        for layer in self.layers:
            if layer.is_initialized:  # a layer that shares the cache of another one never is
                yield from (layer.keys, layer.values)


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values [slots, heads, slot_tokens, head size] of one layer."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate zeros: the mask adds a large negative number to hidden scores, which must be finite."""
        shape = self._cache.slots, key_states.shape[1], self._cache.slot_tokens
        self.keys, self.values = (states.new_zeros(*shape, states.shape[3]) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values; return a view of those that the rows attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, tensor: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        cache = self._cache
        rows = tensor[cache.rows]
        if isinstance(cache.columns, slice):
            rows[:, :, cache.columns] = states
        else:  # one column per row
            rows[torch.arange(len(rows), device=rows.device), :, cache.columns] = states[:, :, 0]
        return rows[:, :, : cache.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a pass attends to, and their offset."""
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        """Return how many tokens of the longest row were cached before the current forward pass."""
        return self._cache.past

    def get_max_length(self) -> int:
        """Return the tokens per slot."""
        return self._cache.slot_tokens
