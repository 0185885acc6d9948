"""Which adapters llama.cpp cannot read, and how the strength of an update is stored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from tests.support import tiny
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.gguf.lora import write_lora_gguf

_MODULE = "base_model.model.model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder("base", tiny.save_model(tmp_path_factory.mktemp("base") / "model", "llama"))


def adapter(
    folder: Path, base: ModelFolder | None, further: dict[str, int] | None = None, **config: Any
) -> ModelFolder:
    """Write an adapter of ranks 4 and 2 on the queries of two layers; `further` are names of more weights."""
    folder.mkdir()
    weights = {name: torch.ones(size, 32) for name, size in (further or {}).items()}
    for layer, rank in enumerate((4, 2)):
        weights[f"{_MODULE.format(layer)}.lora_A.weight"] = torch.ones(rank, 32)
        weights[f"{_MODULE.format(layer)}.lora_B.weight"] = torch.ones(32, rank)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return ModelFolder(folder.name, folder, base=base)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [8 / 4, 8 / 2]),
        ({"use_rslora": True}, [8 / 4**0.5, 8 / 2**0.5]),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, [8 / 4, 3 / 2]),
    ],
)
def test_strength(settings: dict[str, Any], expected: list[float], base: ModelFolder, tmp_path: Path) -> None:
    write_lora_gguf(adapter(tmp_path / "adapter", base, **settings), tmp_path / "adapter.gguf", type="f32")
    reader = GGUFReader(tmp_path / "adapter.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    values = {tensor.name: tensor.data for tensor in reader.tensors}
    for layer, strength in enumerate(expected):
        up = values[f"blk.{layer}.attn_q.weight.lora_b"]
        assert alpha / up.shape[1] * float(up[0, 0]) == pytest.approx(strength)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [300]}},
        {"target_parameters": ["experts.w"]},
        {"peft_type": "IA3"},
    ],
)
def test_settings_that_llama_cpp_does_not_know(settings: dict[str, Any], base: ModelFolder, tmp_path: Path) -> None:
    with raises(RecipeError, "adapter-unsupported", where="adapter"):
        write_lora_gguf(adapter(tmp_path / "adapter", base, **settings), tmp_path / "adapter.gguf", type="f32")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
    ],
)
def test_weights_that_llama_cpp_does_not_read(name: str, base: ModelFolder, tmp_path: Path) -> None:
    with raises(RecipeError, "adapter-unsupported", name):
        write_lora_gguf(adapter(tmp_path / "adapter", base, {name: 3}), tmp_path / "adapter.gguf", type="f32")


def test_adapter_on_the_output_of_a_tied_model(tmp_path: Path) -> None:
    tied = ModelFolder("base", tiny.save_model(tmp_path / "base", "llama", tie_word_embeddings=True))
    names = {f"base_model.model.lm_head.lora_{part}.weight": rows for part, rows in (("A", 4), ("B", 320))}
    with raises(RecipeError, "adapter-unsupported", "lm_head"):
        write_lora_gguf(adapter(tmp_path / "adapter", tied, names), tmp_path / "adapter.gguf", type="f32")


def test_chains_and_full_models(base: ModelFolder, tmp_path: Path) -> None:
    below = adapter(tmp_path / "below", base)
    with raises(RecipeError, "adapter-unsupported"):
        write_lora_gguf(adapter(tmp_path / "above", below), tmp_path / "adapter.gguf", type="f32")
    with raises(RecipeError, "not-an-adapter"):
        write_lora_gguf(base, tmp_path / "adapter.gguf", type="f32")
    with raises(RecipeError, "unknown-gguf-type"):
        write_lora_gguf(below, tmp_path / "adapter.gguf", type="q8_0")
