"""Bases load with the logits of plain transformers; incomplete ones and those of another configuration are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.opened import Opened
from tests.support.tiny import save_model
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.model.load import ComputeConfig, choose_compute, load_base, max_positions

IDS = torch.arange(5, 45).reshape(2, 20)
CPU = ComputeConfig(torch.device("cpu"), torch.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
        return result


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("layers", "code"), [(1, "layer-mismatch"), (3, "weights-missing")])
def test_layer_count_that_differs_from_the_weights_is_refused(
    tmp_path: Path, kind: str, layers: int, code: str
) -> None:
    folder = save_model(tmp_path / "model", kind)
    config = json.loads((folder / "config.json").read_text())
    name = next(key for key in ("num_hidden_layers", "n_layer") if key in config)
    assert config[name] == 2
    (folder / "config.json").write_text(json.dumps({**config, name: layers, "layer_types": None}))
    with raises(RecipeError, code):
        load_base(ModelFolder("x", folder), CPU)


def test_unused_weights_other_than_layers_are_ignored(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "llama")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    assert load_base(ModelFolder("x", folder), CPU).config.num_hidden_layers == 2


def test_loaded_base_has_the_logits_of_plain_transformers(opened: Opened, folder_of: Callable[[str], Path]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder_of("llama"))
    assert torch.equal(logits(opened("llama")), logits(plain))


def test_soft_capped_attention_uses_eager(opened: Opened) -> None:
    assert opened("gemma2").config._attn_implementation == "eager"
    assert opened("llama").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), RecipeError),
        (lambda weights: weights.pop("lm_head.weight"), RecipeError),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(7)}), RecipeError),
        (None, DamagedFile),
    ],
)
def test_incomplete_base_is_refused_instead_of_initialized_at_random(
    folder_of: Callable[[str], Path], tmp_path: Path, change: Any, kind: type[TunesmithError]
) -> None:
    shutil.copytree(folder_of("llama"), tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    if change is None:
        file.write_bytes(file.read_bytes()[:-10])
    else:
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})
    with pytest.raises(kind):
        load_base(ModelFolder("x", tmp_path / "copy"), CPU)


def test_load_base_converts_to_the_requested_dtype(opened: Opened, folder_of: Callable[[str], Path]) -> None:
    model = ModelFolder("x", folder_of("llama"))
    assert opened("llama", torch.bfloat16).dtype == torch.bfloat16
    assert (
        load_base(model, ComputeConfig(torch.device("cpu"), torch.bfloat16), dtype=torch.float32).dtype == torch.float32
    )


@pytest.mark.parametrize(("has_bf16", "setting", "expected"), [
    (True, "auto", "bf16"), (False, "auto", "fp32"), (True, "fp32", "fp32"), (False, "bf16", "bf16"),
])  # fmt: skip
def test_auto_precision_depends_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, setting: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_compute(setting).precision == expected


def test_bf16_is_refused_on_a_gpu_that_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert (choose_compute().device.type, choose_compute().precision) == ("cuda", "fp32")
    with raises(RecipeError, "precision-unsupported", "bf16", where="model.precision"):
        choose_compute("bf16")


def test_autocast_is_enabled_for_weights_of_another_dtype() -> None:
    compute = ComputeConfig(torch.device("cpu"), torch.bfloat16)
    with compute.autocast(torch.float32):
        assert torch.is_autocast_enabled("cpu")
    with compute.autocast(torch.bfloat16):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("kind", "positions"), [("llama", 512), ("gpt2", 512), ("gpt_neo", 512)])
def test_max_positions_are_read_from_the_configuration(opened: Opened, kind: str, positions: int) -> None:
    assert max_positions(opened(kind)) == positions
