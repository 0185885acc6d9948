"""Tokens on disk -> the rows of each optimizer step -> micro-batches of few shapes.

Which rows a step sees is a pure function of (seed, step): no state has to be saved, and neither the size of a
micro-batch nor the machine changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tunesmith.core.records import Tokens

# What one more micro-batch costs beside its tokens, in tokens: starting every layer once more.
_OVERHEAD_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids` [rows, length], padded on the right; `trained` [rows, length], false at padding.

    With causal attention nothing looks to the right, so right padding needs no mask. An encoder does look there:
    `source_ids` and `source_mask` [rows, source length] are what it reads, where there is one.
    """

    input_ids: torch.Tensor
    trained: torch.Tensor
    tokens: int
    source_ids: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in held.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


class TokenSet:
    """The rendered examples of one split: flat arrays and where each example begins.

    `lengths` are the tokens that a model reads of each example, in its encoder and its decoder together.
    """

    def __init__(self, path: Path) -> None:
        arrays = load_file(path)
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

    def example(self, row: int, example_id: str) -> Tokens:
        """Return one example as it was rendered."""
        start, end = self._offsets[row], self._offsets[row + 1]
        ids, trained = self._ids[start:end].tolist(), self._trained[start:end].astype(bool).tolist()
        return Tokens(example_id, tuple(ids), tuple(trained), self._sources.of(row) if self._sources else ())

    def trained_tokens(self, rows: Sequence[int]) -> int:
        """Return how many tokens of these rows enter the loss; the first of a row has nothing before it."""
        return sum(int(self._trained[self._offsets[r] + 1 : self._offsets[r + 1]].sum()) for r in rows)

    def batch(self, rows: Sequence[int], pad_id: int) -> Batch:
        """Return rows as one batch, as long as the bucket of the longest."""
        # Never longer than the longest row of all: padding must not go beyond a model's last position.
        length = min(bucket(int(self._own[list(rows)].max())), int(self._own.max()))
        ids = np.full((len(rows), length), pad_id, np.int64)
        trained = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            start, end = self._offsets[row], self._offsets[row + 1]
            ids[i, : end - start] = self._ids[start:end]
            trained[i, 1 : end - start] = self._trained[start + 1 : end]
        batch = Batch(torch.from_numpy(ids), torch.from_numpy(trained), int(self.lengths[list(rows)].sum()))
        return self._sources.beside(batch, rows, pad_id) if self._sources else batch


class _Sources:
    """What an encoder reads of each example."""

    def __init__(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self._ids = ids
        self._offsets = offsets
        self.lengths: NDArray[np.int64] = np.diff(offsets)

    def of(self, row: int) -> tuple[int, ...]:
        return tuple(self._ids[self._offsets[row] : self._offsets[row + 1]].tolist())

    def beside(self, batch: Batch, rows: Sequence[int], pad_id: int) -> Batch:
        """Return the batch with the sources of its rows; the mask goes by position, whatever id the padding has."""
        lengths = self.lengths[list(rows)]
        length = min(bucket(int(lengths.max())), int(self.lengths.max()))
        mask = np.arange(length) < lengths[:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = np.concatenate([self._ids[self._offsets[row] : self._offsets[row + 1]] for row in rows])
        return replace(batch, source_ids=torch.from_numpy(ids), source_mask=torch.from_numpy(mask.astype(np.int64)))


def write_tokens(path: Path, examples: Sequence[Tokens]) -> None:
    """Write rendered examples as flat arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(e.input_ids) for e in examples)], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, np.int32), *(np.asarray(e.input_ids, np.int32) for e in examples)])
    trained = np.concatenate([np.zeros(0, np.uint8), *(np.asarray(e.trained, np.uint8) for e in examples)])
    arrays = {"input_ids": ids, "trained": trained, "offsets": offsets}
    if any(e.source_ids for e in examples):
        arrays["source_offsets"] = np.cumsum([0, *(len(e.source_ids) for e in examples)], dtype=np.int64)
        arrays["source_ids"] = np.concatenate([np.asarray(e.source_ids, np.int32) for e in examples])
    save_file(arrays, path)


def bucket(length: int) -> int:
    """Return the padded length of a row: few values, because every new shape costs on a CPU."""
    step = 16 if length <= 128 else 32 if length <= 256 else 64 if length <= 1024 else 256
    return -(-length // step) * step


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def rows_of_step(step: int, *, rows: int, examples_per_step: int, total_examples: int, seed: int) -> list[int]:
    """Return the rows of a step (counted from 0); the last step of a run may have fewer."""
    first = step * examples_per_step
    last = min(first + examples_per_step, total_examples)
    return [int(_order(seed, position // rows, rows)[position % rows]) for position in range(first, last)]


def micro_batches(lengths: Sequence[int], *, micro_batch: int | None, most_tokens: int) -> list[list[int]]:
    """Divide rows into micro-batches; return lists of indices into `lengths`, longest first.

    Args:
        lengths: tokens of each row.
        micro_batch: rows of each; None finds the division with the least padding and overhead.
        most_tokens: limit of padded tokens in one micro-batch (one row is always allowed).
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if micro_batch is not None:
        return [order[i : i + micro_batch] for i in range(0, len(order), micro_batch)]
    # Shortest path over the sorted rows: best[i] is the least cost of the rows from i on.
    best, cut = [0.0] * (len(order) + 1), [0] * len(order)
    for i in range(len(order) - 1, -1, -1):
        width = bucket(lengths[order[i]])
        best[i] = float("inf")
        for j in range(i + 1, len(order) + 1):
            if j > i + 1 and (j - i) * width > most_tokens:
                break
            cost = (j - i) * width + _OVERHEAD_TOKENS + best[j]
            if cost < best[i]:
                best[i], cut[i] = cost, j
    batches, i = [], 0
    while i < len(order):
        batches.append(order[i : cut[i]])
        i = cut[i]
    return batches
