"""Packed attention equals masked attention, and refuses more than plain causal attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from torch.nn import functional

from tunesmith.kernels.packed_attention import (
    has_packed_attention,
    packed_attention,
    use_packed_attention,
    use_plain_attention,
)

LAYER: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2)


def tensors(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(1, heads, length, 8, generator=generator, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]


def block_mask(segment_lengths: tuple[int, ...]) -> torch.Tensor:
    """Return which positions (columns) each position (row) attends to."""
    shared, *segments, padding = segment_lengths
    owner = torch.tensor(
        [-1] * shared + [row for row, size in enumerate(segments) for _ in range(size)] + [-2] * padding
    )
    return ((owner[:, None] == owner) | (owner == -1)).tril()


@pytest.mark.parametrize("segment_lengths", [(0, 5, 7, 0), (3, 4, 1, 6, 5), (0, 9, 0), (2, 0, 3, 1), (4, 6, 0, 2)])
def test_packed_attention_equals_masked_attention(segment_lengths: tuple[int, ...]) -> None:
    query, key, value = tensors(sum(segment_lengths))
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=block_mask(segment_lengths), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    actual, _ = packed_attention(LAYER, query, key, value, None, scaling=0.3, segment_lengths=segment_lengths)
    end = sum(segment_lengths) - segment_lengths[-1]
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual[:, :end], expected[:, :end])
    weights = torch.randn_like(expected)
    weights[:, end:] = 0  # padding does not count
    for gradient, reference in zip(
        torch.autograd.grad((actual * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference)


def test_unpacked_sequences_use_sdpa() -> None:
    query, key, value = tensors(6)
    actual, _ = packed_attention(LAYER, query, key, value, None, scaling=0.3)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "no causal order"),
        ({"sliding_window": 6}, "a window of 6 tokens"),
    ],
)
def test_more_than_causal_attention_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        packed_attention(LAYER, *tensors(12), None, segment_lengths=(2, 4, 5, 1), **arguments)
    assert named in str(caught.value)


def test_window_longer_than_every_segment_is_allowed() -> None:
    packed_attention(LAYER, *tensors(12), None, segment_lengths=(2, 4, 5, 1), sliding_window=7)


def test_use_packed_attention_applies_to_sdpa_models_and_can_be_undone(opened: Opened) -> None:
    model = opened("llama")
    assert use_packed_attention(model)
    assert has_packed_attention(model)
    use_plain_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert not use_packed_attention(opened("gemma2"))


def test_saved_config_does_not_name_packed_attention(opened: Opened, tmp_path: Any) -> None:
    model = opened("llama")
    use_packed_attention(model)
    model.save_pretrained(tmp_path)
    assert "tunesmith" not in (tmp_path / "config.json").read_text()
