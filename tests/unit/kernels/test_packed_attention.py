"""Attention row by row: what a mask over the whole sequence gives, and no more than plain causal attention."""

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
    drawn = torch.Generator().manual_seed(length)
    return [torch.randn(1, heads, length, 8, generator=drawn, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]


def masked(parts: tuple[int, ...]) -> torch.Tensor:
    """Return which positions (columns) a position (line) sees."""
    shared, *own, padding = parts
    owner = torch.tensor([-1] * shared + [row for row, size in enumerate(own) for _ in range(size)] + [-2] * padding)
    return ((owner[:, None] == owner) | (owner == -1)).tril()


@pytest.mark.parametrize("parts", [(0, 5, 7, 0), (3, 4, 1, 6, 5), (0, 9, 0), (2, 0, 3, 1), (4, 6, 0, 2)])
def test_rows_by_themselves_are_rows_under_a_mask(parts: tuple[int, ...]) -> None:
    query, key, value = tensors(sum(parts))
    wanted = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=masked(parts), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    found, _ = packed_attention(LAYER, query, key, value, None, scaling=0.3, row_parts=parts)
    kept = sum(parts) - parts[-1]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[:, :kept], wanted[:, :kept])
    weights = torch.randn_like(wanted)
    weights[:, kept:] = 0  # nobody reads padding
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (query, key, value)),
        torch.autograd.grad((wanted * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_sequence_that_is_a_row_is_left_to_transformers() -> None:
    query, key, value = tensors(6)
    found, _ = packed_attention(LAYER, query, key, value, None, scaling=0.3)
    wanted = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "no causal order"),
        ({"sliding_window": 6}, "a window of 6 tokens"),
    ],
)
def test_what_is_more_than_causal_attention_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        packed_attention(LAYER, *tensors(12), None, row_parts=(2, 4, 5, 1), **asked)


def test_a_window_that_reaches_over_every_row_is_none() -> None:
    packed_attention(LAYER, *tensors(12), None, row_parts=(2, 4, 5, 1), sliding_window=7)


def test_only_models_with_torch_s_attention_are_changed_and_back(opened: Opened) -> None:
    model = opened("llama")
    assert use_packed_attention(model)
    assert has_packed_attention(model)
    use_plain_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert not use_packed_attention(opened("gemma2"))


def test_a_saved_model_says_nothing_of_it(opened: Opened, tmp_path: Any) -> None:
    model = opened("llama")
    use_packed_attention(model)
    model.save_pretrained(tmp_path)
    assert "tunesmith" not in (tmp_path / "config.json").read_text()
