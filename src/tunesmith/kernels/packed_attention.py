"""Attention of rows that stand side by side in one sequence: each row by itself, so nothing is spent on the others.

A mask over the whole sequence would do the same, and multiply everything with everything: of eight equal rows seven
eighths for nothing. What all rows begin with is looked at by every row and computed with the first.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "tunesmith_rows"
# Attention by torch's own function, and all that takes masks of other people's making.
SDPA_ATTENTION = ("sdpa", NAME)
MASKABLE_ATTENTION = (*SDPA_ATTENTION, "eager")
# What an attention of its own kind hands over beside queries, keys and values; leaving it out would change the result.
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias")


def use_packed_attention(model: Any) -> bool:
    """Let a model that uses torch's attention keep rows apart by computing each by itself; return whether it will.

    Without rows side by side nothing changes.
    """
    if model.config._attn_implementation == "sdpa" and not model.config.is_encoder_decoder:
        _set(model, "sdpa", NAME)
    return has_packed_attention(model)


def has_packed_attention(model: Any) -> bool:
    """Say whether the model keeps rows apart without a mask."""
    return bool(model.config._attn_implementation == NAME)


def use_plain_attention(model: Any) -> None:
    """Undo `use_packed_attention`."""
    _set(model, NAME, "sdpa")


def _set(model: Any, old: str, new: str) -> None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == old:
            config._attn_implementation = new


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_parts: tuple[int, ...] = (),
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention [sequences, length, heads, width] of queries and keys [sequences, heads, length, width].

    Args:
        row_parts: see `Batch.segment_lengths`; empty if each row is a sequence.

    Raises:
        ValueError: the layer wants more than plain causal attention, which is not done by rows.
    """
    if not row_parts:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return found
    _refuse_more_than_causal(module, max(row_parts[1:-1]) + row_parts[0], kwargs)
    shared, padding = row_parts[0], row_parts[-1]
    if not shared:  # a part that is kept would keep the whole product that values were made in with queries and keys
        value = value.contiguous()
    begin, *rows, _ = zip(*(torch.split(one, list(row_parts), dim=2) for one in (query, key, value)), strict=True)
    outputs = []
    for number, own in enumerate(rows):
        q, k, v = (torch.cat(both, dim=2) for both in zip(begin, own, strict=True)) if shared else own
        out = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        ).transpose(1, 2)
        outputs.append(out[:, shared:] if number else out)
    return torch.cat([*outputs, outputs[0].new_zeros(1, padding, *outputs[0].shape[2:])], dim=1), None


def _refuse_more_than_causal(module: torch.nn.Module, longest: int, asked: dict[str, Any]) -> None:
    more = [name for name in _CHANGES_SCORES if asked.get(name) is not None]
    if asked.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        more.append("no causal order")
    window = asked.get("sliding_window")
    if window is not None and window < longest:
        more.append(f"a window of {window} tokens")
    if more:
        raise ValueError(f"a layer's attention has {', '.join(more)}")


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
