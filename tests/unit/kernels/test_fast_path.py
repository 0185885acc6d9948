"""Fast paths are used if they reproduce the plain path, and undone with a reason if they do not."""

from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened
from tests.support.tokens import dataset_of
from tests.support.trajectory import losses

from tunesmith.core.records import TokenizedExample
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.kernels import fast_path, gated_mlp, lora_fused
from tunesmith.kernels.fast_path import enable_fast_path
from tunesmith.kernels.gated_mlp import GatedProduct
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import attention_window, packing_unsupported_reason
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import FullTuning, LoraTuning

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
TUNINGS = {
    "lora": LoraTuning(method="lora", rank=4),
    "dropout": LoraTuning(method="lora", rank=4, dropout=0.2),
    "dora": LoraTuning(method="lora", rank=4, dora=True),
    "full": FullTuning(method="full"),
}
GATED = {"llama", "mistral", "qwen2", "qwen3", "granite"}


def rows(count: int = 12, *, answer: int | None = 4) -> TokenDataset:
    """Return rows of 8 to 12 tokens with a common prefix, of which the last `answer` tokens, or all, are trained."""
    generator = torch.Generator().manual_seed(3)
    examples = []
    for i in range(count):
        length = int(torch.randint(8, 13, (1,), generator=generator))
        ids = [7, 8, 9, *torch.randint(3, 300, (length - 3,), generator=generator).tolist()]
        begin = 0 if answer is None else length - answer
        examples.append(TokenizedExample(str(i), tuple(ids), tuple(position >= begin for position in range(length))))
    return dataset_of(examples)


def trajectory(model: Any, tokens: TokenDataset, policy: MicroBatchPolicy) -> list[float]:
    """Return the losses of six steps without dropout."""
    return losses(model.eval(), tokens, policy, steps=6, learning_rate=3e-3, pad_id=5)


@pytest.mark.parametrize(("most_tokens", "compared"), [(384, 8), (30, 3), (1, 1)])
def test_several_short_rows_are_compared(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, most_tokens: int, compared: int
) -> None:
    """In bf16, rounding changes the gradients of a single row too much to tell it from a fault."""
    batches = []

    def recorded(model: Any, batch: Batch) -> Any:
        batches.append(len(batch.input_ids))
        return token_loss(model, batch)

    monkeypatch.setattr(fast_path, "token_loss", recorded)
    monkeypatch.setattr(fast_path, "_MAX_TOKENS", most_tokens)
    assert enable_fast_path(make_trainable(opened("llama"), TUNINGS["lora"], seed=0), rows(), 5, FP32) == {}
    assert set(batches) == {compared}


@pytest.mark.slow
@pytest.mark.parametrize("answer", [4, None], ids=["answers", "text"])
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("kind", [k if k == "llama" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_fast_path_has_the_trajectory_of_the_plain_path(
    opened: Opened, kind: str, tuning: str, answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six losses, packed and chunked, equal those of the plain path with one row per pass: every task, tuning, kind."""
    tokens = rows(answer=answer)
    plain = make_trainable(opened(kind), TUNINGS[tuning], seed=0)
    expected = trajectory(plain, tokens, MicroBatchPolicy(1))
    fast = make_trainable(opened(kind), TUNINGS[tuning], seed=0)
    assert enable_fast_path(fast, tokens, 5, FP32) == {}
    assert packing_unsupported_reason(fast, tokens, 5, FP32) is None
    monkeypatch.setattr("tunesmith.kernels.token_loss.LOGITS_CHUNK", 16)
    policy = MicroBatchPolicy(
        64,
        packing="auto",
        packed_attention=has_packed_attention(fast),
        attention_window=attention_window(fast),
        share_prefix=tuning != "dropout",
    )
    if has_packed_attention(fast):  # a mask cannot pack rows beyond the attention window
        assert any(micro_batch.shared is not None for micro_batch in policy.split(tokens, range(len(tokens))))
    assert expected[-1] < 0.98 * expected[0]
    assert trajectory(fast, tokens, policy) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_path_is_enabled_for_supported_architectures(opened: Opened, kind: str) -> None:
    model = make_trainable(opened(kind), TUNINGS["lora"], seed=0)
    enable_fast_path(model, rows(), 5, FP32)
    gated = [m for m in model.modules() if "gated_mlp" in getattr(vars(m).get("forward"), "__module__", "")]
    fused = [m for m in model.modules() if "lora_fused" in getattr(vars(m).get("forward"), "__module__", "")]
    assert bool(gated) == (kind in GATED)
    assert bool(fused) == (kind != "gpt2")  # its weights are transposed


def test_fast_path_with_a_wrong_loss_is_undone_with_a_reason(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return gate * up

    monkeypatch.setattr(GatedProduct, "forward", staticmethod(wrong))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    refused = enable_fast_path(model, rows(), 5, FP32)
    assert list(refused) == ["gated MLP"]
    assert "%" in refused["gated MLP"]
    assert not any("gated_mlp" in getattr(vars(m).get("forward"), "__module__", "") for m in model.modules())


def test_fast_path_with_a_wrong_gradient_is_undone(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora_fused.LoraProduct.backward

    def wrong(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        results = list(right(ctx, *gradients))
        results[-1] = results[-1] * 1.05
        return tuple(results)

    monkeypatch.setattr(lora_fused.LoraProduct, "backward", staticmethod(wrong))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    assert list(enable_fast_path(model, rows(), 5, FP32)) == ["fused LoRA"]


def test_fast_path_that_raises_is_undone_with_a_reason(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(lora_fused.LoraProduct, "forward", staticmethod(broken))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    assert "no kernel for this" in enable_fast_path(model, rows(), 5, FP32)["fused LoRA"]
    token_loss(model, rows().batch([0], 5)).nll.sum().backward()  # type: ignore[no-untyped-call]


def test_fast_path_is_not_used_without_memory_to_test_it(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(lora_fused.LoraProduct, "forward", staticmethod(out_of_memory))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    before = [weight.detach().clone() for _, weight in trained_parameters(model)]
    assert list(enable_fast_path(model, rows(), 5, FP32)) == ["fast path"]
    after = [weight for _, weight in trained_parameters(model)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    token_loss(model, rows().batch([0], 5)).nll.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_testing_the_fast_path_changes_no_weight_and_leaves_no_gradient(opened: Opened, tuning: str) -> None:
    model = make_trainable(opened("llama"), TUNINGS[tuning], seed=0).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    enable_fast_path(model, rows(), 5, FP32)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_fast_path_is_not_tested_without_rows(opened: Opened) -> None:
    assert enable_fast_path(make_trainable(opened("llama"), TUNINGS["lora"], seed=0), dataset_of([]), 5, FP32) == {}


def test_gated_product_and_its_gradient() -> None:
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(GatedProduct.apply(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up))  # type: ignore[no-untyped-call]


def test_gated_product_saves_two_tensors(opened: Opened) -> None:
    def saved_tensors(model: Any) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(input_ids=torch.arange(5, 45)[None]).logits.sum()
        return sizes.count(40 * 64)

    plain = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    before = saved_tensors(plain)
    gated_mlp.patch_gated_mlp(plain)
    assert saved_tensors(plain) == before - 2  # one less in each of two layers


def test_fused_weights_share_storage(opened: Opened) -> None:
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    enable_fast_path(model, rows(), 5, FP32)
    q = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    k = model.base_model.model.model.layers[0].self_attn.k_proj.base_layer.weight
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
