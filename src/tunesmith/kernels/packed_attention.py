"""Attention in packed sequences, computed separately for each segment, so that no work is spent between segments.

A block-diagonal mask gives the same result but multiplies every token with every other: with eight equal segments,
seven eighths of the work is wasted. The shared prefix is computed with the first segment, and all segments attend to
it.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "tunesmith_rows"
# The implementations on torch's scaled_dot_product_attention, and all that accept any 4D mask.
SDPA_ATTENTION = ("sdpa", NAME)
MASKABLE_ATTENTION = (*SDPA_ATTENTION, "eager")
# Arguments of attention variants that change the scores; ignoring them would change the result.
_SCORE_ARGUMENTS = ("softcap", "s_aux", "position_bias")


def use_packed_attention(model: Any) -> bool:
    """Let a model with SDPA attention compute packed segments separately; return whether it does so now.

    For sequences that are not packed, nothing changes.
    """
    if model.config._attn_implementation == "sdpa" and not model.config.is_encoder_decoder:
        _replace_attention(model, "sdpa", NAME)
    return has_packed_attention(model)


def has_packed_attention(model: Any) -> bool:
    """Return whether the model keeps packed segments apart without a mask."""
    return bool(model.config._attn_implementation == NAME)


def use_plain_attention(model: Any) -> None:
    """Undo `use_packed_attention`."""
    _replace_attention(model, NAME, "sdpa")


def _replace_attention(model: Any, old: str, new: str) -> None:
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
    segment_lengths: tuple[int, ...] = (),
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention [sequences, length, heads, width] of queries and keys [sequences, heads, length, width].

    Args:
        segment_lengths: see `Batch.segment_lengths`; empty if the sequences are not packed.

    Raises:
        ValueError: the layer needs more than plain causal attention, which is not implemented for segments.
    """
    if not segment_lengths:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    _require_plain_causal(module, max(segment_lengths[1:-1]) + segment_lengths[0], kwargs)
    shared, padding = segment_lengths[0], segment_lengths[-1]
    if not shared:  # a saved view would keep the whole product of queries, keys and values in memory
        value = value.contiguous()
    parts = (torch.split(tensor, list(segment_lengths), dim=2) for tensor in (query, key, value))
    prefix, *segments, _ = zip(*parts, strict=True)
    outputs = []
    for number, segment in enumerate(segments):
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(prefix, segment, strict=True)) if shared else segment
        out = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        ).transpose(1, 2)
        outputs.append(out[:, shared:] if number else out)
    return torch.cat([*outputs, outputs[0].new_zeros(1, padding, *outputs[0].shape[2:])], dim=1), None


def _require_plain_causal(module: torch.nn.Module, longest: int, arguments: dict[str, Any]) -> None:
    """Raise ValueError unless a layer has plain causal attention for segments of up to `longest` tokens.

    It may have no soft-capping, sinks or position bias, and no window shorter than a segment.
    """
    unsupported = [name for name in _SCORE_ARGUMENTS if arguments.get(name) is not None]
    if arguments.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        unsupported.append("no causal order")
    window = arguments.get("sliding_window")
    if window is not None and window < longest:
        unsupported.append(f"a window of {window} tokens")
    if unsupported:
        raise ValueError(f"a layer's attention has {', '.join(unsupported)}")


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
