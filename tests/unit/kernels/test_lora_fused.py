"""Fused LoRA layers give the outputs and gradients of separate ones, and are saved as peft saves them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.opened import KINDS, Opened
from tests.unit.model.test_lora import IDS, adapted

from tunesmith.kernels.lora_fused import (
    FusedGroup,
    LoraProduct,
    PendingOutputs,
    fuse_lora,
    record_shared_inputs,
)
from tunesmith.model.adapters import save_model


def fuse(model: Any) -> tuple[Any, list[list[Any]]]:
    """Return a fused copy of a model, and its groups of fused layers."""
    fused = copy.deepcopy(model)
    with record_shared_inputs(fused) as groups, torch.no_grad():
        fused(input_ids=IDS)
    fuse_lora(groups)
    return fused, groups


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_outputs_and_gradients_equal_separate(opened: Opened, kind: str) -> None:
    separate = adapted(opened(kind, torch.float64))
    fused, groups = fuse(separate)
    torch.testing.assert_close(fused(input_ids=IDS).logits, separate(input_ids=IDS).logits)
    expected, actual = gradients(separate), gradients(fused)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-9, msg=name)
    sizes = sorted({len(group) for group in groups})
    assert sizes == {"gpt2": [], "phi": [1, 3], "phi3": [1], "gpt_neo": [1, 3]}.get(kind, [1, 2, 3])


def test_fused_layer_alone_in_its_group_uses_its_current_weight(opened: Opened) -> None:
    model, groups = fuse(adapted(opened("llama", torch.float64)))
    single = [group[0].get_base_layer() for group in groups if len(group) == 1]
    assert single
    for layer in single:
        layer.weight.data = torch.zeros_like(layer.weight)
    separate = adapted(opened("llama", torch.float64))
    assert not torch.equal(model(input_ids=IDS).logits, separate(input_ids=IDS).logits), (
        "the replaced weights must be used"
    )


def test_lora_product_equals_the_formula_and_its_derivative() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight, bias = random(2, 3, 5), random(4 + 2, 5).detach(), random(6).detach()
    downs, ups = [random(2, 5), random(3, 5)], [random(4, 2), random(2, 3)]
    first, second = LoraProduct.apply(x, weight, bias, [0.5, 2.0], 0.0, *downs, *ups)
    torch.testing.assert_close(first, x @ weight[:4].T + bias[:4] + 0.5 * x @ downs[0].T @ ups[0].T)
    torch.testing.assert_close(second, x @ weight[4:].T + bias[4:] + 2.0 * x @ downs[1].T @ ups[1].T)

    # Gradients of the master weights are fp32, so they are compared with autograd instead of with differences.
    d_outputs = (random(2, 3, 4).detach(), random(2, 3, 2).detach())
    plain = (
        x @ weight[:4].T + bias[:4] + 0.5 * x @ downs[0].T @ ups[0].T,
        x @ weight[4:].T + bias[4:] + 2.0 * x @ downs[1].T @ ups[1].T,
    )
    actual = torch.autograd.grad((first, second), [x, *downs, *ups], d_outputs)
    expected = torch.autograd.grad(plain, [x, *downs, *ups], d_outputs)
    for gradient, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


def test_lora_product_with_dropout_uses_one_mask_per_layer_in_both_passes() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight = random(7, 5), random(6, 5).detach()
    downs, ups = [random(2, 5), random(3, 5)], [random(4, 2), random(2, 3)]
    torch.manual_seed(1)
    outputs = LoraProduct.apply(x, weight, None, [0.5, 2.0], 0.4, *downs, *ups)
    torch.manual_seed(1)
    dropped = [torch.nn.functional.dropout(x, 0.4) for _ in range(2)]  # with the masks that peft would draw
    plain = [
        x @ w.T + scale * inputs @ down.T @ up.T
        for w, scale, inputs, down, up in zip(weight.split([4, 2]), (0.5, 2.0), dropped, downs, ups, strict=True)
    ]
    assert not torch.equal(dropped[0], dropped[1])
    d_outputs = [random(7, 4).detach(), random(7, 2).detach()]
    for output, reference in zip(outputs, plain, strict=True):
        torch.testing.assert_close(output, reference)
    actual = torch.autograd.grad(outputs, [x, *downs, *ups], d_outputs)
    expected = torch.autograd.grad(plain, [x, *downs, *ups], d_outputs)
    for gradient, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


def test_dropout_of_fused_layers_is_random_in_training_only(opened: Opened) -> None:
    fused, groups = fuse(adapted(opened("llama"), lora_dropout=0.5))
    assert groups
    with torch.no_grad():
        evaluated = fused(input_ids=IDS).logits
        assert torch.equal(fused(input_ids=IDS).logits, evaluated)
        fused.train()
        torch.manual_seed(5)
        first, second = fused(input_ids=IDS).logits, fused(input_ids=IDS).logits
        torch.manual_seed(5)
        assert torch.equal(fused(input_ids=IDS).logits, first)
    assert not torch.equal(first, second)
    assert not torch.equal(first, evaluated)


def test_layers_that_read_different_tensors_are_in_different_groups(opened: Opened) -> None:
    _, groups = fuse(adapted(opened("llama")))
    assert all(len({id(layer) for layer in group}) == len(group) for group in groups)
    assert len(groups) == 2 * 4  # q, k and v; o; gate and up; down


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_dora_and_lora_bias_are_not_fused(opened: Opened, settings: dict[str, Any]) -> None:
    _, groups = fuse(adapted(opened("llama"), **settings))
    assert groups == []


def test_disabled_fused_adapters_give_the_base(opened: Opened) -> None:
    fused, _ = fuse(adapted(opened("llama")))
    with torch.inference_mode():
        changed = fused(input_ids=IDS).logits
        with fused.disable_adapter():
            torch.testing.assert_close(fused(input_ids=IDS).logits, opened("llama")(input_ids=IDS).logits)
        assert torch.equal(fused(input_ids=IDS).logits, changed)


def test_fused_layer_recomputes_for_a_second_call_and_for_another_tensor(opened: Opened) -> None:
    fused, _ = fuse(adapted(opened("llama")))
    attention = fused.base_model.model.model.layers[0].self_attn
    x, other = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    with torch.no_grad():
        first = attention.q_proj(x)
        assert torch.equal(attention.q_proj(x), first)
        expected = attention.k_proj(other)
        attention.q_proj(x)
        assert torch.equal(attention.k_proj(other), expected)
        x.mul_(2)
        assert not torch.equal(attention.q_proj(x), first), "the tensor was changed in place"


def test_undoing_the_fusion_restores_the_layers(opened: Opened) -> None:
    model = adapted(opened("llama"))
    before = [vars(module).get("forward") for module in model.modules()]
    with record_shared_inputs(model) as groups, torch.no_grad():
        model(input_ids=IDS)
    undo = fuse_lora(groups)
    assert [vars(module).get("forward") for module in model.modules()] != before
    undo()
    assert [vars(module).get("forward") for module in model.modules()] == before


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi"])
def test_fused_adapter_saves_and_loads_in_plain_peft(opened: Opened, tmp_path: Path, kind: str) -> None:
    fused, _ = fuse(adapted(opened(kind)))
    save_model(fused, tmp_path, base="org/model")
    theirs = PeftModel.from_pretrained(opened(kind), str(tmp_path))
    with torch.inference_mode():
        torch.testing.assert_close(fused(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def pending_of(model: Any) -> PendingOutputs:
    """Return the pending outputs of a fused model."""
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    cells = [cell.cell_contents for cell in layer.forward.__func__.__closure__]
    [group] = [content for content in cells if isinstance(content, FusedGroup)]
    return group.pending


def test_fused_layers_hold_no_tensor_after_a_pass(opened: Opened) -> None:
    fused, _ = fuse(adapted(opened("llama")))
    fused(input_ids=IDS)
    assert pending_of(fused).input is None
    assert not pending_of(fused).outputs


def test_outputs_of_an_aborted_pass_are_released_by_the_next_pass(opened: Opened) -> None:
    fused, _ = fuse(adapted(opened("llama")))
    layers = fused.base_model.model.model.layers

    def out_of_memory(*args: Any) -> None:
        raise MemoryError

    hook = layers[1].mlp.up_proj.register_forward_pre_hook(out_of_memory)  # gate_proj ran before
    with pytest.raises(MemoryError):
        fused(input_ids=IDS)
    hook.remove()
    leftover = pending_of(fused).input
    assert leftover is not None
    with torch.no_grad():
        layers[0].self_attn.q_proj(torch.randn(1, 3, 32))
    assert pending_of(fused).input is not leftover
