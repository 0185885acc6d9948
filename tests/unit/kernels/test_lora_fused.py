"""LoRA layers multiplied as one give what each gives alone, and what is saved of them is what peft would save."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.opened import KINDS, Opened
from tests.unit.model.test_lora import IDS, adapted

from tunesmith.kernels.lora_fused import LoraProduct, fuse_lora, record_shared_inputs
from tunesmith.model.adapters import save_model


def stacked(model: Any) -> tuple[Any, list[list[Any]]]:
    made = copy.deepcopy(model)
    with record_shared_inputs(made) as groups, torch.no_grad():
        made(input_ids=IDS)
    fuse_lora(groups)
    return made, groups


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_and_separate_have_one_output_and_one_gradient(opened: Opened, kind: str) -> None:
    separate = adapted(opened(kind, torch.float64))
    together, groups = stacked(separate)
    torch.testing.assert_close(together(input_ids=IDS).logits, separate(input_ids=IDS).logits)
    one, other = gradients(separate), gradients(together)
    assert one.keys() == other.keys()
    for name, wanted in one.items():
        torch.testing.assert_close(other[name], wanted, rtol=1e-6, atol=1e-9, msg=name)
    sizes = sorted({len(group) for group in groups})
    assert sizes == {"gpt2": [], "phi": [1, 3], "phi3": [1], "gpt_neo": [1, 3]}.get(kind, [1, 2, 3])


def test_a_stack_keeps_nothing_of_weights_that_its_layers_replace(opened: Opened) -> None:
    model, groups = stacked(adapted(opened("llama", torch.float64)))
    alone = [group[0].get_base_layer() for group in groups if len(group) == 1]
    assert alone
    for layer in alone:
        layer.weight.data = torch.zeros_like(layer.weight)
    separate = adapted(opened("llama", torch.float64))
    assert not torch.equal(model(input_ids=IDS).logits, separate(input_ids=IDS).logits), "the new weights count"


def test_the_formula_and_its_derivative_are_checked_numerically() -> None:
    drawn = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).requires_grad_()

    x, weight, bias = made(2, 3, 5), made(4 + 2, 5).detach(), made(6).detach()
    downs, ups = [made(2, 5), made(3, 5)], [made(4, 2), made(2, 3)]
    one, two = LoraProduct.apply(x, weight, bias, [4, 2], [0.5, 2.0], 0.0, *downs, *ups)
    torch.testing.assert_close(one, x @ weight[:4].T + bias[:4] + 0.5 * x @ downs[0].T @ ups[0].T)
    torch.testing.assert_close(two, x @ weight[4:].T + bias[4:] + 2.0 * x @ downs[1].T @ ups[1].T)

    # The masters' gradients are fp32, so they are held to autograd's and not to differences of numbers.
    flows = (made(2, 3, 4).detach(), made(2, 3, 2).detach())
    plain = (
        x @ weight[:4].T + bias[:4] + 0.5 * x @ downs[0].T @ ups[0].T,
        x @ weight[4:].T + bias[4:] + 2.0 * x @ downs[1].T @ ups[1].T,
    )
    found = torch.autograd.grad((one, two), [x, *downs, *ups], flows)
    wanted = torch.autograd.grad(plain, [x, *downs, *ups], flows)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_with_dropout_each_layer_s_a_sees_what_it_drew_forward_and_back() -> None:
    drawn = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).requires_grad_()

    x, weight = made(7, 5), made(6, 5).detach()
    downs, ups = [made(2, 5), made(3, 5)], [made(4, 2), made(2, 3)]
    torch.manual_seed(1)
    outputs = LoraProduct.apply(x, weight, None, [4, 2], [0.5, 2.0], 0.4, *downs, *ups)
    torch.manual_seed(1)
    seen = [torch.nn.functional.dropout(x, 0.4) for _ in range(2)]  # what peft would have drawn
    plain = [
        x @ w.T + scale * one @ down.T @ up.T
        for w, scale, one, down, up in zip(weight.split([4, 2]), (0.5, 2.0), seen, downs, ups, strict=True)
    ]
    assert not torch.equal(seen[0], seen[1])
    flows = [made(7, 4).detach(), made(7, 2).detach()]
    for mine, theirs in zip(outputs, plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    found = torch.autograd.grad(outputs, [x, *downs, *ups], flows)
    wanted = torch.autograd.grad(plain, [x, *downs, *ups], flows)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_dropout_is_drawn_in_training_only_and_anew(opened: Opened) -> None:
    together, groups = stacked(adapted(opened("llama"), lora_dropout=0.5))
    assert groups
    with torch.no_grad():
        quiet = together(input_ids=IDS).logits
        assert torch.equal(together(input_ids=IDS).logits, quiet)
        together.train()
        torch.manual_seed(5)
        one, other = together(input_ids=IDS).logits, together(input_ids=IDS).logits
        torch.manual_seed(5)
        assert torch.equal(together(input_ids=IDS).logits, one)
    assert not torch.equal(one, other)
    assert not torch.equal(one, quiet)


def test_layers_of_one_name_that_read_different_tensors_are_apart(opened: Opened) -> None:
    _, groups = stacked(adapted(opened("llama")))
    assert all(len({id(layer) for layer in group}) == len(group) for group in groups)
    assert len(groups) == 2 * 4  # queries, keys and values; their output; both halves of the gate; its output


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_plain_lora_is_left_alone(opened: Opened, settings: dict[str, Any]) -> None:
    _, groups = stacked(adapted(opened("llama"), **settings))
    assert groups == []


def test_adapters_that_are_off_are_the_base_and_on_again_themselves(opened: Opened) -> None:
    together, _ = stacked(adapted(opened("llama")))
    with torch.inference_mode():
        changed = together(input_ids=IDS).logits
        with together.disable_adapter():
            torch.testing.assert_close(together(input_ids=IDS).logits, opened("llama")(input_ids=IDS).logits)
        assert torch.equal(together(input_ids=IDS).logits, changed)


def test_a_layer_asked_again_or_with_another_tensor_computes_anew(opened: Opened) -> None:
    together, _ = stacked(adapted(opened("llama")))
    attention = together.base_model.model.model.layers[0].self_attn
    x, other = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    with torch.no_grad():
        first = attention.q_proj(x)
        assert torch.equal(attention.q_proj(x), first)
        wanted = attention.k_proj(other)
        attention.q_proj(x)
        assert torch.equal(attention.k_proj(other), wanted)
        x.mul_(2)
        assert not torch.equal(attention.q_proj(x), first), "the same tensor with other numbers"


def test_undone_layers_are_as_they_were(opened: Opened) -> None:
    model = adapted(opened("llama"))
    before = [vars(module).get("forward") for module in model.modules()]
    with record_shared_inputs(model) as groups, torch.no_grad():
        model(input_ids=IDS)
    undo = fuse_lora(groups)
    assert [vars(module).get("forward") for module in model.modules()] != before
    undo()
    assert [vars(module).get("forward") for module in model.modules()] == before


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi"])
def test_what_is_saved_loads_in_plain_peft_with_equal_logits(opened: Opened, tmp_path: Path, kind: str) -> None:
    together, _ = stacked(adapted(opened(kind)))
    save_model(together, tmp_path, base="org/model")
    theirs = PeftModel.from_pretrained(opened(kind), str(tmp_path))
    with torch.inference_mode():
        torch.testing.assert_close(together(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def waiting_of(model: Any) -> Any:
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    [held] = [
        cell.cell_contents
        for cell in layer.forward.__func__.__closure__
        if type(cell.cell_contents).__name__ == "_Stack"
    ]
    return held._waiting


def test_nothing_is_kept_alive_after_a_pass(opened: Opened) -> None:
    together, _ = stacked(adapted(opened("llama")))
    together(input_ids=IDS)
    assert waiting_of(together).read is None
    assert all(one is None for one in waiting_of(together).outputs)


def test_what_a_pass_that_broke_off_has_left_is_gone_with_the_next_one_s_first_layer(opened: Opened) -> None:
    together, _ = stacked(adapted(opened("llama")))
    layers = together.base_model.model.model.layers

    def breaks(*args: Any) -> None:
        raise MemoryError

    hook = layers[1].mlp.up_proj.register_forward_pre_hook(breaks)  # its gate has been asked already
    with pytest.raises(MemoryError):
        together(input_ids=IDS)
    hook.remove()
    left = waiting_of(together).read
    assert left is not None
    with torch.no_grad():
        layers[0].self_attn.q_proj(torch.randn(1, 3, 32))
    assert waiting_of(together).read is not left
