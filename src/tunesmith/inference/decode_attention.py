"""Attention of one new token per row, computed for a few rows at a time.

The rows of a batch differ in length. A single attention call reads the cache of every row up to the length of the
longest row. For most rows that is unused space, and reading the cache is most of the cost. Here each strip of rows is
read only up to its own longest row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.kernels.packed_attention import SDPA_ATTENTION

_NAME = "tunesmith_by_length"

# Rows that share one attention call, and the length up to which their caches are read.
Strip = tuple[slice, int]


@contextmanager
def attend_in_strips(config: Any) -> Iterator[None]:
    """Let the model compute attention strip by strip if it is called with `strips`, and restore it afterwards.

    Args:
        config: the configuration that the layers read. It is unchanged if it names another attention than SDPA.
    """
    before = config._attn_implementation
    if before in SDPA_ATTENTION:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def cut_strips(lengths: Sequence[int], rows: int) -> list[Strip]:
    """Divide rows of the given lengths into strips of `rows` rows."""
    return [(slice(start, start + rows), max(lengths[start : start + rows])) for start in range(0, len(lengths), rows)]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    strips: Sequence[Strip] = (),
    **options: Any,
) -> tuple[torch.Tensor, None]:
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if attention_mask is None or len(strips) < 2:
        output: tuple[torch.Tensor, None] = sdpa(module, query, key, value, attention_mask, **options)
        return output
    outputs = [
        sdpa(module, query[r], key[r, :, :w], value[r, :, :w], attention_mask[r, :, :, :w], **options)[0]
        for r, w in strips
    ]
    return torch.cat(outputs), None


AttentionInterface.register(_NAME, _attend)
