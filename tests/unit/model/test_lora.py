"""The forward pass of plain LoRA in bf16: as precise as peft's, with fp32 master weights."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.support.opened import Opened

from tunesmith.model.lora import use_compute_dtype

IDS = torch.arange(5, 45).reshape(2, 20)


def adapted(model: Any, *, random_b: bool = True, **settings: Any) -> Any:
    given = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(0)
    adapted_model = get_peft_model(model, LoraConfig(**given))
    with torch.no_grad():
        for name, weight in adapted_model.named_parameters():
            if random_b and "lora_B" in name:
                weight.normal_(0, 0.05)
    return adapted_model.eval()


def with_our_forward(model: Any) -> Any:
    """Return a copy of the model with our forward pass."""
    copied = copy.deepcopy(model)
    use_compute_dtype(copied)
    return copied


def has_our_forward(model: Any) -> list[bool]:
    return ["forward" in vars(module) for module in model.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_bf16_outputs_are_as_precise_as_peft_s(opened: Opened, kind: str) -> None:
    theirs = adapted(opened(kind, torch.bfloat16))
    mine = with_our_forward(theirs)
    exact = adapted(opened(kind))
    with torch.inference_mode():
        expected = exact(input_ids=IDS).logits
        actual, peft_s = mine(input_ids=IDS).logits.float(), theirs(input_ids=IDS).logits.float()
        base = opened(kind)(input_ids=IDS).logits
    assert all(has_our_forward(mine))
    assert not any(has_our_forward(theirs))
    our_error, peft_error = (float((logits - expected).norm()) for logits in (actual, peft_s))
    effect = float((expected - base).norm())
    assert effect > 5 * peft_error, "the adapter must matter more than rounding"
    assert our_error < 1.5 * peft_error


def test_lora_layer_equals_the_formula(opened: Opened) -> None:
    layer = with_our_forward(adapted(opened("llama", torch.bfloat16))).base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 5, 32, dtype=torch.bfloat16)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.inference_mode():
        expected = x.float() @ layer.base_layer.weight.float().T + 3.0 * (x.float() @ down.T) @ up.T
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)
        assert layer(x).dtype == torch.bfloat16


def test_master_weights_and_gradients_stay_fp32(opened: Opened) -> None:
    theirs = adapted(opened("llama", torch.bfloat16))
    mine = with_our_forward(theirs)
    exact = adapted(opened("llama"))
    gradients = []
    for model in (mine, theirs, exact):
        model(input_ids=IDS, labels=IDS).loss.backward()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert len(trained) == 28
        assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in trained.items())
        assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in trained.values())
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained.values()]))
    actual, peft_s, expected = gradients
    assert float((actual - expected).norm()) < 1.5 * float((peft_s - expected).norm())
    assert torch.nn.functional.cosine_similarity(actual, expected, dim=0) > 0.999


def test_updates_below_bf16_precision_are_kept(opened: Opened) -> None:
    mine = with_our_forward(adapted(opened("llama", torch.bfloat16)))
    weight = mine.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    before = weight.detach().clone()
    with torch.no_grad():
        for _ in range(10):
            weight += 1e-5 * weight.abs()  # bf16 would round each of these away
    assert torch.all((weight - before).abs() >= 5e-5 * before.abs())


def test_new_and_disabled_adapters_equal_the_base(opened: Opened) -> None:
    with torch.inference_mode():
        expected = opened("llama", torch.bfloat16)(input_ids=IDS).logits
        fresh = with_our_forward(adapted(opened("llama", torch.bfloat16), random_b=False))
        assert torch.equal(fresh(input_ids=IDS).logits, expected)
        mine = with_our_forward(adapted(opened("llama", torch.bfloat16)))
        changed = mine(input_ids=IDS).logits
        assert not torch.equal(changed, expected)
        with mine.disable_adapter():
            assert torch.equal(mine(input_ids=IDS).logits, expected)
        assert torch.equal(mine(input_ids=IDS).logits, changed)


def test_merged_weights_have_the_logits_of_the_adapter(opened: Opened) -> None:
    mine = with_our_forward(adapted(opened("llama", torch.bfloat16)))
    with torch.inference_mode():
        unmerged = mine(input_ids=IDS).logits.float()
        mine.merge_adapter()
        merged = mine(input_ids=IDS).logits.float()
        mine.unmerge_adapter()
        unloaded = mine.merge_and_unload(safe_merge=True)(input_ids=IDS).logits.float()
    for logits in (merged, unloaded):
        assert float((logits - unmerged).norm() / unmerged.norm()) < 0.02


def test_dropout_is_applied_in_training_only(opened: Opened) -> None:
    mine = with_our_forward(adapted(opened("llama", torch.bfloat16), lora_dropout=0.5))
    with torch.inference_mode():
        assert torch.equal(mine(input_ids=IDS).logits, mine(input_ids=IDS).logits)
        mine.train()
        torch.manual_seed(1)
        first = mine(input_ids=IDS).logits
        again = mine(input_ids=IDS).logits
        torch.manual_seed(1)
        assert torch.equal(mine(input_ids=IDS).logits, first)
    assert not torch.equal(again, first)


@pytest.mark.parametrize(
    ("kind", "settings", "replaced"),
    [
        ("llama", {"use_rslora": True}, 14),  # differs only in the scale
        ("llama", {"use_dora": True}, 0),
        ("phi", {"lora_bias": True}, 0),  # the formula has no bias
        ("llama", {"target_modules": ["embed_tokens"]}, 0),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 2),
    ],
)
def test_only_plain_lora_gets_our_forward(opened: Opened, kind: str, settings: dict[str, Any], replaced: int) -> None:
    theirs = adapted(opened(kind, torch.bfloat16), **settings)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                weight.fill_(0.5)
    mine = with_our_forward(theirs)
    assert sum(has_our_forward(mine)) == replaced
    with torch.inference_mode():
        expected = theirs(input_ids=IDS).logits.float()
        assert float((mine(input_ids=IDS).logits.float() - expected).norm() / expected.norm()) < 0.02


def test_several_active_adapters_use_peft_s_forward(opened: Opened) -> None:
    theirs = adapted(opened("llama", torch.bfloat16))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    theirs.add_adapter("second", config)
    mine = with_our_forward(theirs)
    for active in (["default", "second"], ["second"], ["default"]):
        for model in (theirs, mine):
            model.base_model.set_adapter(active)
        with torch.inference_mode():
            expected = theirs(input_ids=IDS).logits.float()
            actual = mine(input_ids=IDS).logits.float()
        assert float((actual - expected).norm() / expected.norm()) < 0.02, active
