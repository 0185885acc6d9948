"""Saved models load in plain peft and transformers with equal logits, and incomplete ones are refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.opened import Opened
from tests.unit.model.conftest import DORA, FP32, FULL, LORA, RSLORA, WEIGHTS, logits, tuned
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import DamagedFile
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapters import attach_adapter, open_model, restore_weights, save_model
from tunesmith.model.load import load_base
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import LoraTuning

# --- save_model ---


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [("llama", LORA), ("gpt2", LORA), ("gemma2", LORA), ("llama", DORA), ("gpt2", DORA), ("llama", RSLORA)],
)
def test_saved_adapter_loads_in_plain_peft_with_equal_logits(
    opened: Opened, tmp_path: Path, kind: str, tuning: LoraTuning
) -> None:
    model = tuned(opened(kind), tuning)
    save_model(model, tmp_path, base="org/base")
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", WEIGHTS]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["target_modules"] == sorted(config["target_modules"])
    plain = PeftModel.from_pretrained(opened(kind), str(tmp_path))
    assert torch.equal(logits(plain), logits(model))
    assert torch.equal(logits(attach_adapter(opened(kind), tmp_path)), logits(model))
    assert not torch.equal(logits(plain), logits(opened(kind)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi3"])
def test_saved_full_model_loads_in_plain_transformers_with_equal_logits(
    opened: Opened, tmp_path: Path, kind: str
) -> None:
    model = tuned(opened(kind), FULL)
    save_model(model, tmp_path, base="org/base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation)
    assert torch.equal(logits(plain), logits(model))
    assert plain.dtype == torch.float32


SAVE = """
import sys; from pathlib import Path; from tests.unit.model.test_adapters import save_both
save_both(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def save_both(llama: Path, gpt2: Path, out: Path) -> None:
    """Save an adapter of one model, and another model with tied weights in full."""
    save_model(tuned(load_base(ModelFolder("x", llama), FP32), LORA), out / "lora", base="org/base")
    save_model(tuned(load_base(ModelFolder("x", gpt2), FP32), FULL), out / "full", base="org/base")


@pytest.mark.slow
def test_saved_bytes_are_equal_in_every_process(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = [folder_of("llama"), folder_of("gpt2")]
    save_both(*arguments, tmp_path / "here")
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", SAVE, *map(str, arguments), str(tmp_path / "there")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    files = [sorted(p.relative_to(top) for p in top.rglob("*") if p.is_file()) for top in tmp_path.iterdir()]
    assert files[0] == files[1]
    assert len(files[0]) >= 5
    for name in files[0]:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_saving_does_not_change_the_model(opened: Opened, tmp_path: Path) -> None:
    model = tuned(opened("llama"), LORA)
    before = logits(model)
    save_model(model, tmp_path / "a", base="org/base")
    assert torch.equal(logits(model), before)
    assert all(weight.requires_grad for _, weight in trained_parameters(model))
    assert len(list(trained_parameters(model))) == 28
    save_model(model, tmp_path / "b", base="org/base")
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# --- restore_weights ---


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [
        *((kind, LORA) for kind in ("llama", "gpt2", "gemma2", "phi3", "gpt_neox", "mixtral")),
        *((kind, FULL) for kind in ("llama", "gpt2", "gemma2", "phi3", "gpt_neox", "mixtral")),
        *((kind, DORA) for kind in ("llama", "gpt2")),
    ],
)
def test_restored_weights_are_bit_identical(opened: Opened, tmp_path: Path, kind: str, tuning: Any) -> None:
    model = tuned(opened(kind), tuning)
    save_model(model, tmp_path, base="org/base")
    fresh = make_trainable(opened(kind), tuning, seed=9)
    restore_weights(fresh, tmp_path)
    for (name, weight), (_, saved) in zip(trained_parameters(fresh), trained_parameters(model), strict=True):
        assert torch.equal(weight, saved), name
        assert weight.dtype == torch.float32
    assert torch.equal(logits(fresh), logits(model))


def test_weights_in_several_files_are_restored(opened: Opened, tmp_path: Path) -> None:
    model = tuned(opened("llama"), FULL)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    fresh = make_trainable(opened("llama"), FULL, seed=9)
    restore_weights(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))


def test_fp32_master_weights_of_a_bf16_model_are_restored_bit_for_bit(opened: Opened, tmp_path: Path) -> None:
    model = tuned(opened("llama", torch.bfloat16), LORA)
    save_model(model, tmp_path, base="org/base")
    fresh = make_trainable(opened("llama", torch.bfloat16), LORA, seed=9)
    restore_weights(fresh, tmp_path)
    for (_, weight), (_, saved) in zip(trained_parameters(fresh), trained_parameters(model), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, saved)


@pytest.mark.parametrize("change", [
    lambda weights: weights.pop(sorted(weights)[3]),
    lambda weights: weights.update({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}),
])  # fmt: skip
@pytest.mark.parametrize("how", ["restore", "attach"])
def test_adapter_with_missing_or_unexpected_weights_is_refused(
    opened: Opened, altered: Callable[..., Path], change: Callable[..., Any], how: str
) -> None:
    folder = altered(change)
    with raises(DamagedFile, "weights-mismatch"):
        restore_weights(make_trainable(opened("llama"), LORA, seed=0), folder) if how == "restore" else attach_adapter(
            opened("llama"), folder
        )


@pytest.mark.parametrize("how", ["restore", "attach"])
def test_adapter_without_a_dora_magnitude_is_refused(opened: Opened, tmp_path: Path, how: str) -> None:
    save_model(tuned(opened("llama"), DORA), tmp_path, base="org/base")
    weights = load_file(tmp_path / WEIGHTS)
    magnitudes = [name for name in weights if "magnitude" in name]
    assert len(magnitudes) == 14
    del weights[magnitudes[3]]
    save_file(weights, tmp_path / WEIGHTS)
    model = make_trainable(opened("llama"), DORA, seed=0) if how == "restore" else opened("llama")
    with raises(DamagedFile, "weights-mismatch"):
        restore_weights(model, tmp_path) if how == "restore" else attach_adapter(model, tmp_path)


@pytest.mark.parametrize("change", [
    lambda weights: weights.pop("model.norm.weight"),
    lambda weights: weights.update({"model.layers.7.mlp.up_proj.weight": torch.zeros(4, 32)}),
])  # fmt: skip
def test_full_model_with_missing_or_unexpected_weights_is_refused(
    opened: Opened, tmp_path: Path, change: Callable[..., Any]
) -> None:
    save_model(opened("llama"), tmp_path, base="x")
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with raises(DamagedFile, "weights-mismatch"):
        restore_weights(opened("llama"), tmp_path)


# --- open_model ---


def test_adapter_on_an_adapter_adds_both_updates(
    opened: Opened, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = ModelFolder("base", folder_of("llama"))
    first = tuned(opened("llama"), LORA, seed=1)
    save_model(first, tmp_path / "first", base="base")
    first_folder = ModelFolder("first", tmp_path / "first", base)
    torch.testing.assert_close(logits(open_model(first_folder, FP32)), logits(first))
    merged = open_model(first_folder, FP32, merged=True)
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged), logits(first), rtol=1e-4, atol=1e-4)
    # Training continues on the merged weights.
    second = tuned(merged, LoraTuning(method="lora", rank=2, target=("v_proj", "up_proj")), seed=2)
    expected = logits(second)
    save_model(second, tmp_path / "second", base="first")
    second_folder = ModelFolder("second", tmp_path / "second", first_folder)
    assert second_folder.root is base
    for model in (open_model(second_folder, FP32), open_model(second_folder, FP32, merged=True)):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(first), rtol=1e-2, atol=1e-2)
    assert isinstance(open_model(second_folder, FP32), PeftModel)
