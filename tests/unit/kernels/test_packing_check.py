"""Packed rows have the loss and the gradients that they have alone, or the check finds a reason against packing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened
from tests.support.tiny import make_tokenizer
from tests.support.tokens import write_examples

from tunesmith.core.records import TokenizedExample
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.kernels import packing_check
from tunesmith.kernels.packed_attention import has_packed_attention, use_plain_attention
from tunesmith.kernels.packing_check import attention_window, has_dropout, packing_unsupported_reason
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import TextData
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
BF16 = ComputeConfig(torch.device("cpu"), torch.bfloat16)
FP64 = ComputeConfig(torch.device("cpu"), torch.float64)
WINDOWED = {"gpt_neo", "gemma2", "gemma3_text", "mistral"}  # windows of 16


@pytest.fixture
def tokens(tmp_path: Path) -> TokenDataset:
    """Four rows of 6 to 9 tokens with a common prefix of three; two of them share all their untrained tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [[7, 8, 9, *torch.randint(3, 300, (n,), generator=generator).tolist()] for n in (3, 4, 6, 5)]
    rows[3][:5] = rows[2][:5]
    examples = [
        TokenizedExample(str(i), tuple(row), (*[False] * (len(row) - 2), True, True)) for i, row in enumerate(rows)
    ]
    write_examples(tmp_path / "rows.safetensors", examples)
    return TokenDataset(tmp_path / "rows.safetensors")


def loss_and_gradients(model: Any, tokens: TokenDataset, policy: MicroBatchPolicy) -> tuple[float, torch.Tensor]:
    rows = range(len(tokens))
    total = 0.0
    for _, batch in policy.batches(tokens, rows, 5):
        loss = token_loss(model, batch).nll.sum() / tokens.trained_tokens(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    gradients = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    model.zero_grad(set_to_none=True)
    return total, gradients


@pytest.mark.slow
@pytest.mark.parametrize("use_packed_attention", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_and_gradients_equal_unpacked(
    opened: Opened, tokens: TokenDataset, kind: str, share: bool, use_packed_attention: bool
) -> None:
    model = opened(kind, torch.float64).requires_grad_(True)
    assert packing_unsupported_reason(model, tokens, 5, FP64) is None
    assert attention_window(model) == (16 if kind in WINDOWED else packing_check.UNLIMITED)
    if not use_packed_attention:
        use_plain_attention(model)
    # gemma2 and gpt_neo use their own eager attention, which needs a mask.
    assert has_packed_attention(model) == (use_packed_attention and kind not in ("gemma2", "gpt_neo"))
    separate = has_packed_attention(model)
    packed = MicroBatchPolicy(
        4096, packing="always", share_prefix=share, attention_window=attention_window(model), packed_attention=separate
    )
    micro_batches = packed.split(tokens, range(4))
    assert any(micro_batch.shared == (3 if share else 0) for micro_batch in micro_batches)
    assert len(micro_batches) == (1 if kind not in WINDOWED or separate else 3 if not share else 2)
    expected, actual = loss_and_gradients(model, tokens, MicroBatchPolicy(1)), loss_and_gradients(model, tokens, packed)
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)  # the loss is computed from logits in fp32
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6 * float(expected[1].abs().max()))


def test_packed_blocks_of_a_document_have_the_loss_of_unpacked_ones(opened: Opened, tmp_path: Path) -> None:
    tokenizer = TokenizerAdapter(make_tokenizer())
    data = TextData(source=FileSource(file="x.jsonl"), task="text", text="text", too_long="split")
    task = task_for(data, tokenizer)
    document = task.render(task.parse({"text": "Say one and two, then red cat, blue dog, one go. " * 3}))
    blocks = [task.render(block) for block in task.split_blocks(document, 16)]
    assert len(blocks) > 3
    write_examples(tmp_path / "rows.safetensors", blocks)
    tokens = TokenDataset(tmp_path / "rows.safetensors")
    assert tokens.trained_tokens(range(len(blocks))) == len(document.input_ids) - 1
    model = opened("llama", torch.float64).requires_grad_(True)
    packed = MicroBatchPolicy(
        4096, packing="always", attention_window=attention_window(model), packed_attention=has_packed_attention(model)
    )
    assert len(packed.split(tokens, range(len(blocks)))) == 1
    expected, actual = loss_and_gradients(model, tokens, MicroBatchPolicy(1)), loss_and_gradients(model, tokens, packed)
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6 * float(expected[1].abs().max()))


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_recurrent_model_is_not_packed(opened: Opened, tokens: TokenDataset, kind: str) -> None:
    assert packing_unsupported_reason(opened(kind), tokens, 5, FP32)


def test_model_that_ignores_masks_is_not_packed(
    opened: Opened, tokens: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("llama")
    forward = model.forward

    def ignore_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            attention_mask = torch.full_like(attention_mask, torch.finfo(torch.float32).min).triu(1)
        return forward(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model, "forward", ignore_mask)
    assert "depends on" in str(packing_unsupported_reason(model, tokens, 5, FP32))


def test_model_that_ignores_positions_is_not_packed(
    opened: Opened, tokens: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("gpt2")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs))
    assert "nats" in str(packing_unsupported_reason(model, tokens, 5, FP32))


def test_model_that_rejects_positions_is_not_packed(
    opened: Opened, tokens: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("llama")
    forward = model.forward

    def without_positions(input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", without_positions)
    assert "position" in str(packing_unsupported_reason(model, tokens, 5, FP32))


@pytest.mark.parametrize(("compute", "changed", "packs"), [(BF16, 1, True), (BF16, 50, False), (FP32, 1, False)])
def test_rounding_of_single_tokens_is_allowed_in_low_precision(
    opened: Opened,
    tokens: TokenDataset,
    monkeypatch: pytest.MonkeyPatch,
    compute: ComputeConfig,
    changed: int,
    packs: bool,
) -> None:
    """An unlikely token of 50 may change by half a nat, as SmolLM2's do in bf16; all 50 may not."""
    alone = torch.ones(50)
    together = torch.cat([alone[:changed] + 0.5, alone[changed:]])
    losses = iter([alone, together, together, alone, together, together])  # with packed attention, and with a mask
    monkeypatch.setattr(packing_check, "_losses", lambda *args: next(losses))
    assert (packing_unsupported_reason(opened("llama"), tokens, 5, compute) is None) == packs


def test_packing_check_leaves_the_model_unchanged(opened: Opened, tokens: TokenDataset) -> None:
    model = opened("llama").train()
    packing_unsupported_reason(model, tokens, 5, FP32)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_has_dropout_finds_modules_and_attributes(opened: Opened) -> None:
    model = opened("gpt2")
    assert not has_dropout(model)
    other = opened("llama")
    assert not has_dropout(other)
    other.model.layers[1].self_attn.attention_dropout = 0.1  # an attribute, not a module
    assert has_dropout(other)
    other = opened("llama")
    other.model.layers[0].extra = torch.nn.Dropout(0.1)
    assert has_dropout(other)
