"""Attention of one new token a row, for few rows at a time, each time up to the longest among them.

Rows side by side differ in length. Attention over all of them reads every row's cache up to the longest one's end,
which for most rows is room that holds nothing; and reading is what such attention takes its time for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.kernels.packed_attention import SDPA_ATTENTION

_NAME = "tunesmith_by_length"
_WHOLE = "sdpa"

# Rows that are computed together, and the width up to which they are read.
Strip = tuple[slice, int]


@contextmanager
def attend_in_strips(config: Any) -> Iterator[None]:
    """Let a model attend strip by strip where it is called with `strips`, and as before afterwards.

    Args:
        config: the configuration that the model's layers ask; it is left alone unless it names torch's own attention.
    """
    before = config._attn_implementation
    if before in SDPA_ATTENTION:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def cut_strips(lengths: Sequence[int], rows: int) -> list[Strip]:
    """Cut rows of some lengths into strips of so many rows."""
    return [(slice(at, at + rows), max(lengths[at : at + rows])) for at in range(0, len(lengths), rows)]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    strips: Sequence[Strip] = (),
    **given: Any,
) -> tuple[torch.Tensor, None]:
    whole = ALL_ATTENTION_FUNCTIONS[_WHOLE]
    if attention_mask is None or len(strips) < 2:
        found: tuple[torch.Tensor, None] = whole(module, query, key, value, attention_mask, **given)
        return found
    parts = [
        whole(module, query[r], key[r, :, :w], value[r, :, :w], attention_mask[r, :, :, :w], **given)[0]
        for r, w in strips
    ]
    return torch.cat(parts), None


AttentionInterface.register(_NAME, _attend)
