"""Faster ways are taken where they are proved equal, and undone with a reason where they are not."""

from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened
from tests.support.trajectory import losses

from tunesmith.core.records import TokenizedExample
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.kernels import gated_mlp, lora_fused
from tunesmith.kernels.fast_path import enable_fast_path
from tunesmith.kernels.gated_mlp import GatedProduct
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import attention_window, packing_unsupported_reason
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.adapters import make_trainable, trained_parameters
from tunesmith.model.load import ComputeConfig
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
    """Return rows of 8 to 12 tokens that begin alike; of each the last few are trained, or all of them."""
    drawn = torch.Generator().manual_seed(3)
    examples = []
    for i in range(count):
        length = int(torch.randint(8, 13, (1,), generator=drawn))
        ids = [7, 8, 9, *torch.randint(3, 300, (length - 3,), generator=drawn).tolist()]
        begin = 0 if answer is None else length - answer
        examples.append(TokenizedExample(str(i), tuple(ids), tuple(place >= begin for place in range(length))))
    return TokenDataset.from_examples(examples)


def trajectory(model: Any, tokens: TokenDataset, division: MicroBatchPolicy) -> list[float]:
    """Return the losses of six steps in which nothing is drawn at random, so that both ways compute the same."""
    return losses(model.eval(), tokens, division, steps=6, learning_rate=3e-3, pad_id=5)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [4, None], ids=["answers", "text"])
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("kind", [k if k == "llama" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_the_fast_path_learns_what_the_plain_path_learns(
    opened: Opened, kind: str, tuning: str, answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss by loss over six steps, packed and in chunks against one row a pass, whole: every task x tuning x kind."""
    tokens = rows(answer=answer)
    plain = make_trainable(opened(kind), TUNINGS[tuning], seed=0)
    wanted = trajectory(plain, tokens, MicroBatchPolicy(1))
    fast = make_trainable(opened(kind), TUNINGS[tuning], seed=0)
    assert enable_fast_path(fast, tokens, 5, FP32) == {}
    assert packing_unsupported_reason(fast, tokens, 5, FP32) is None
    monkeypatch.setattr("tunesmith.kernels.token_loss.LOGITS_CHUNK", 16)
    division = MicroBatchPolicy(
        64,
        packing="auto",
        packed_attention=has_packed_attention(fast),
        attention_window=attention_window(fast),
        share_prefix=tuning != "dropout",
    )
    if has_packed_attention(fast):  # under a mask rows of windowed layers must not even stand far apart
        assert any(group.shared is not None for group in division.split(tokens, range(len(tokens))))
    found = trajectory(fast, tokens, division)
    assert wanted[-1] < 0.98 * wanted[0]
    assert found == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_where_it_can_be(opened: Opened, kind: str) -> None:
    model = make_trainable(opened(kind), TUNINGS["lora"], seed=0)
    enable_fast_path(model, rows(), 5, FP32)
    gated = [m for m in model.modules() if "gated_mlp" in getattr(vars(m).get("forward"), "__module__", "")]
    stacks = [m for m in model.modules() if "lora_fused" in getattr(vars(m).get("forward"), "__module__", "")]
    assert bool(gated) == (kind in GATED)
    assert bool(stacks) == (kind != "gpt2")  # its matrices stand the other way round


def test_a_way_that_gives_something_else_is_undone_with_a_reason(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return gate * up

    monkeypatch.setattr(GatedProduct, "forward", staticmethod(wrong))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    refused = enable_fast_path(model, rows(), 5, FP32)
    assert list(refused) == ["gated layers"]
    assert "%" in refused["gated layers"]
    assert not any("gated_mlp" in getattr(vars(m).get("forward"), "__module__", "") for m in model.modules())


def test_a_wrong_gradient_alone_is_noticed(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora_fused.LoraProduct.backward

    def wrong(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        found = list(right(ctx, *gradients))
        found[-1] = found[-1] * 1.05
        return tuple(found)

    monkeypatch.setattr(lora_fused.LoraProduct, "backward", staticmethod(wrong))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    assert list(enable_fast_path(model, rows(), 5, FP32)) == ["stacked adapters"]


def test_a_way_that_breaks_is_undone_with_a_reason(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(lora_fused.LoraProduct, "forward", staticmethod(broken))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    assert "no kernel for this" in enable_fast_path(model, rows(), 5, FP32)["stacked adapters"]
    token_loss(model, rows().batch([0], 5)).nll.sum().backward()  # type: ignore[no-untyped-call]


def test_without_memory_to_try_it_the_plain_path_is_left_as_it_is(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(lora_fused.LoraProduct, "forward", staticmethod(full))
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    before = [weight.detach().clone() for _, weight in trained_parameters(model)]
    assert enable_fast_path(model, rows(), 5, FP32) == {"faster ways": "memory does not suffice to try them"}
    after = [weight for _, weight in trained_parameters(model)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    token_loss(model, rows().batch([0], 5)).nll.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_proof_changes_no_weight_and_leaves_no_gradient(opened: Opened, tuning: str) -> None:
    model = make_trainable(opened("llama"), TUNINGS[tuning], seed=0).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    enable_fast_path(model, rows(), 5, FP32)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_without_rows_there_is_nothing_to_prove(opened: Opened) -> None:
    assert (
        enable_fast_path(
            make_trainable(opened("llama"), TUNINGS["lora"], seed=0), TokenDataset.from_examples([]), 5, FP32
        )
        == {}
    )


def test_silu_times_up_and_its_derivative() -> None:
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(GatedProduct.apply(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up))  # type: ignore[no-untyped-call]


def test_two_tensors_are_kept_of_a_gate(opened: Opened) -> None:
    def kept(model: Any) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(input_ids=torch.arange(5, 45)[None]).logits.sum()
        return sizes.count(40 * 64)

    plain = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    before = kept(plain)
    gated_mlp.patch_gated_mlp(plain)
    assert kept(plain) == before - 2  # one in each of two layers


def test_weights_that_are_multiplied_as_one_stand_in_one_place(opened: Opened) -> None:
    model = make_trainable(opened("llama"), TUNINGS["lora"], seed=0)
    enable_fast_path(model, rows(), 5, FP32)
    q = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    k = model.base_model.model.model.layers[0].self_attn.k_proj.base_layer.weight
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
