"""The forward pass of LoRA in bf16: peft's own numbers, fp32 masters, and nothing taken that is not plain LoRA."""

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
    made = get_peft_model(model, LoraConfig(**given))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if random_b and "lora_B" in name:
                weight.normal_(0, 0.05)
    return made.eval()


def ours(model: Any) -> Any:
    made = copy.deepcopy(model)
    use_compute_dtype(made)
    return made


def is_ours(model: Any) -> list[bool]:
    return ["forward" in vars(module) for module in model.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_outputs_are_peft_s_own_within_the_precision(opened: Opened, kind: str) -> None:
    theirs = adapted(opened(kind, torch.bfloat16))
    mine = ours(theirs)
    exact = adapted(opened(kind))
    with torch.inference_mode():
        wanted = exact(input_ids=IDS).logits
        found, peft_s = mine(input_ids=IDS).logits.float(), theirs(input_ids=IDS).logits.float()
        base = opened(kind)(input_ids=IDS).logits
    assert all(is_ours(mine))
    assert not any(is_ours(theirs))
    mine_off, theirs_off = (float((one - wanted).norm()) for one in (found, peft_s))
    effect = float((wanted - base).norm())
    assert effect > 5 * theirs_off, "the adapter must matter more than rounding does"
    assert mine_off < 1.5 * theirs_off  # as near to the exact result as peft's detour over fp32 is


def test_one_layer_is_the_formula(opened: Opened) -> None:
    layer = ours(adapted(opened("llama", torch.bfloat16))).base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 5, 32, dtype=torch.bfloat16)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.inference_mode():
        wanted = x.float() @ layer.base_layer.weight.float().T + 3.0 * (x.float() @ down.T) @ up.T
        torch.testing.assert_close(layer(x).float(), wanted, rtol=0.02, atol=0.02)
        assert layer(x).dtype == torch.bfloat16


def test_masters_and_their_gradients_stay_in_full_precision(opened: Opened) -> None:
    theirs = adapted(opened("llama", torch.bfloat16))
    mine = ours(theirs)
    exact = adapted(opened("llama"))
    gradients = []
    for model in (mine, theirs, exact):
        model(input_ids=IDS, labels=IDS).loss.backward()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert len(trained) == 28
        assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in trained.items())
        assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in trained.values())
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained.values()]))
    found, peft_s, wanted = gradients
    assert float((found - wanted).norm()) < 1.5 * float((peft_s - wanted).norm())
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.999


def test_a_step_below_the_precision_of_the_model_is_not_lost(opened: Opened) -> None:
    mine = ours(adapted(opened("llama", torch.bfloat16)))
    weight = mine.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    before = weight.detach().clone()
    with torch.no_grad():
        for _ in range(10):
            weight += 1e-5 * weight.abs()  # bf16 would round each of these away
    assert torch.all((weight - before).abs() >= 5e-5 * before.abs())


def test_new_adapters_and_adapters_that_are_off_are_the_base(opened: Opened) -> None:
    with torch.inference_mode():
        wanted = opened("llama", torch.bfloat16)(input_ids=IDS).logits
        fresh = ours(adapted(opened("llama", torch.bfloat16), random_b=False))
        assert torch.equal(fresh(input_ids=IDS).logits, wanted)
        mine = ours(adapted(opened("llama", torch.bfloat16)))
        changed = mine(input_ids=IDS).logits
        assert not torch.equal(changed, wanted)
        with mine.disable_adapter():
            assert torch.equal(mine(input_ids=IDS).logits, wanted)
        assert torch.equal(mine(input_ids=IDS).logits, changed)


def test_merged_weights_answer_as_the_adapter_did(opened: Opened) -> None:
    mine = ours(adapted(opened("llama", torch.bfloat16)))
    with torch.inference_mode():
        beside = mine(input_ids=IDS).logits.float()
        mine.merge_adapter()
        merged = mine(input_ids=IDS).logits.float()
        mine.unmerge_adapter()
        unloaded = mine.merge_and_unload(safe_merge=True)(input_ids=IDS).logits.float()
    for found in (merged, unloaded):
        assert float((found - beside).norm() / beside.norm()) < 0.02


def test_dropout_is_applied_in_training_only(opened: Opened) -> None:
    mine = ours(adapted(opened("llama", torch.bfloat16), lora_dropout=0.5))
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
    ("kind", "settings", "taken"),
    [
        ("llama", {"use_rslora": True}, 14),  # only another scale
        ("llama", {"use_dora": True}, 0),
        ("phi", {"lora_bias": True}, 0),  # whose bias the formula would leave out
        ("llama", {"target_modules": ["embed_tokens"]}, 0),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, 2),
    ],
)
def test_only_plain_lora_is_taken(opened: Opened, kind: str, settings: dict[str, Any], taken: int) -> None:
    theirs = adapted(opened(kind, torch.bfloat16), **settings)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                weight.fill_(0.5)
    mine = ours(theirs)
    assert sum(is_ours(mine)) == taken
    with torch.inference_mode():
        wanted = theirs(input_ids=IDS).logits.float()
        assert float((mine(input_ids=IDS).logits.float() - wanted).norm() / wanted.norm()) < 0.02


def test_several_adapters_at_once_are_left_to_peft(opened: Opened) -> None:
    theirs = adapted(opened("llama", torch.bfloat16))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    theirs.add_adapter("second", config)
    mine = ours(theirs)
    for active in (["default", "second"], ["second"], ["default"]):
        for model in (theirs, mine):
            model.base_model.set_adapter(active)
        with torch.inference_mode():
            wanted = theirs(input_ids=IDS).logits.float()
            found = mine(input_ids=IDS).logits.float()
        assert float((found - wanted).norm() / wanted.norm()) < 0.02, active
