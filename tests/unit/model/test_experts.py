"""LoRA on all linear layers trains the experts of a mixture too, and settings under which it cannot are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.errors import raises
from tests.support.opened import Opened
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapters import open_model, save_model
from tunesmith.model.experts import check_experts, expert_parameters, routers
from tunesmith.model.load import ComputeConfig
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import LoraTuning, QloraTuning

IDS = torch.arange(5, 45).reshape(2, 20)
LORA = LoraTuning(method="lora", rank=4, alpha=8)
# peft itself adapts the experts of the first, and leaves those of the others frozen.
# The routers of the last two are linear layers that return a tuple.
MIXTURES = pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss", "llama4_text", "phimoe"])
FolderOf = Callable[[str], Path]


def trained_experts(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trained_parameters(model) if ".experts." in name}


@MIXTURES
def test_experts_change_in_training_and_load_in_plain_peft(
    opened: Opened, folder_of: FolderOf, tmp_path: Path, kind: str
) -> None:
    model = make_trainable(opened(kind), LORA, seed=0).train()
    before = trained_experts(model)
    assert len(before) == 2 * 2 * 2  # two layers, two weights, A and B
    optimizer = torch.optim.SGD([weight for _, weight in trained_parameters(model)], lr=1.0)
    for _ in range(2):  # the first step changes only B, as B is zero
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in trained_experts(model).items())
    save_model(model, tmp_path / "adapter", base=str(folder_of(kind)))
    with torch.inference_mode():
        logits, base = model.eval()(input_ids=IDS).logits, opened(kind)(input_ids=IDS).logits
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder_of(kind)), tmp_path / "adapter")
        assert torch.equal(plain.eval()(input_ids=IDS).logits, logits)
        assert not torch.equal(logits, base)
        folder = ModelFolder("x", tmp_path / "adapter", base=ModelFolder("base", folder_of(kind)))
        merged = open_model(folder, ComputeConfig(torch.device("cpu"), torch.float32), merged=True)
        torch.testing.assert_close(merged.eval()(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-4)


def test_the_same_adapter_is_saved_as_the_same_bytes(opened: Opened, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(make_trainable(opened("mixtral"), LORA, seed=0), tmp_path / name, base="org/base")
    assert (tmp_path / "a/adapter_config.json").read_bytes() == (tmp_path / "b/adapter_config.json").read_bytes()
    assert '"experts.down_proj"' in (tmp_path / "a/adapter_config.json").read_text()


def test_routers_that_return_a_tuple_are_not_adapted(opened: Opened) -> None:
    assert (routers(opened("phimoe")), routers(opened("llama4_text")), routers(opened("llama"))) == (
        ["router"],
    ) * 2 + ([],)
    names = [name for name, _ in trained_parameters(make_trainable(opened("phimoe"), LORA, seed=0))]
    assert names
    assert not any("router" in name for name in names)


def test_only_stacked_matrices_are_experts(opened: Opened) -> None:
    assert expert_parameters(opened("mixtral")) == ["experts.down_proj", "experts.gate_up_proj"]
    assert expert_parameters(opened("llama")) == []
    assert expert_parameters(opened("mamba")) == []  # its convolutions have weights of three dimensions


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("dora", True)])
def test_settings_that_experts_do_not_allow_are_refused(
    opened: Opened, folder_of: FolderOf, key: str, value: Any
) -> None:
    tuning = LORA.model_copy(update={key: value})
    with raises(RecipeError, "wrong-target", f"tuning.{key}"):
        check_experts(folder_of("qwen2_moe"), tuning)
    with raises(RecipeError, "wrong-target", f"tuning.{key}"):
        make_trainable(opened("qwen2_moe"), tuning, seed=0)
    assert check_experts(folder_of("llama"), tuning) == []


def test_named_targets_that_leave_experts_frozen_are_a_warning(folder_of: FolderOf) -> None:
    named = LORA.model_copy(update={"target": ("q_proj",)})
    [warning] = check_experts(folder_of("qwen2_moe"), named)
    assert "experts.down_proj" in warning
    assert check_experts(folder_of("llama"), named) == []
    assert check_experts(folder_of("qwen2_moe"), LORA) == []


def test_experts_that_are_not_quantized_are_a_warning(folder_of: FolderOf) -> None:
    qlora = QloraTuning(method="qlora")
    [warning] = check_experts(folder_of("qwen2_moe"), qlora)
    assert "tuning.bits" in warning
    assert check_experts(folder_of("llama"), qlora) == []
