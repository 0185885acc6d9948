"""The contents of a GGUF file of a model, and the models that are refused."""

import json
import os
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from safetensors.torch import load_file, save_file
from tests.support import tiny
from tests.support.errors import raises
from tests.support.gguf_tokenizers import save_unknown_pre_tokenizer

from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError
from tunesmith.gguf import tensors
from tunesmith.gguf.architectures import ARCHITECTURES
from tunesmith.gguf.tensor_types import GGUF_TYPES
from tunesmith.gguf.write import write_gguf

_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {**_YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("llama") / "model", "llama")


def change_weight(folder: Path, name: str, value: float) -> Path:
    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def read(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_types(name: str, llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "model.gguf", type=name)
    reader = GGUFReader(tmp_path / "model.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["blk.1.ffn_down.weight"] == GGUF_TYPES[name].weights
    assert types["token_embd.weight"] == types["output.weight"] == GGUF_TYPES[name].embeddings
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == GGMLQuantizationType.F32
    assert read(tmp_path / "model.gguf")["general.file_type"] == GGUF_TYPES[name].file


def test_rows_that_do_not_fill_a_block(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama", intermediate_size=48)
    write_gguf(folder, tmp_path / "model.gguf", type="q8_0")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16
    assert types["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0


def test_metadata(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "model.gguf", type="f16", metadata={"general.license": "apache-2.0"})
    fields = read(tmp_path / "model.gguf")
    expected = {
        "general.architecture": "llama", "general.license": "apache-2.0", "llama.context_length": 512,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.block_count": 2,
        "llama.rope.freq_base": 10000.0, "llama.vocab_size": 320, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": tiny.CHATML,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_vocabulary_has_a_token_for_each_row(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "model.gguf", type="f16")
    fields = read(tmp_path / "model.gguf")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == len(types) == 320
    by_name = dict(zip(tokens, types, strict=True))
    assert [by_name[name] for name in tiny.SPECIALS] == [TokenType.CONTROL] * 3
    assert by_name["<think>"] == TokenType.USER_DEFINED
    assert by_name["a"] == TokenType.NORMAL
    assert types[-1] == TokenType.UNUSED


def test_chunks_give_the_same_file(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(llama, tmp_path / "whole.gguf", type="q8_0")
    monkeypatch.setattr(tensors, "_CHUNK", 70)
    write_gguf(llama, tmp_path / "parts.gguf", type="q8_0")
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_stored_bf16_is_exact(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "qwen2")
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, tmp_path / "model.gguf", type="bf16")
    stored = next(t for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.0.ffn_up.weight")
    expected = weights["model.layers.0.mlp.up_proj.weight"].view(torch.int16).numpy()
    assert np.array_equal(stored.data.view(np.int16), expected)


@pytest.mark.parametrize(("kind", "refused"), [("f16", True), ("bf16", False), ("q8_0", False)])
def test_values_too_large_for_f16(kind: str, refused: bool, llama: Path, tmp_path: Path) -> None:
    folder = change_weight(copytree(llama, tmp_path / "model"), "model.layers.0.mlp.up_proj.weight", 70000.0)
    if not refused:
        write_gguf(folder, tmp_path / "model.gguf", type=kind)
        return
    with raises(RecipeError, "gguf-overflow", where="model.layers.0.mlp.up_proj.weight"):
        write_gguf(folder, tmp_path / "model.gguf", type=kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, llama: Path, tmp_path: Path) -> None:
    folder = change_weight(copytree(llama, tmp_path / "model"), "lm_head.weight", value)
    with raises(RecipeError, "gguf-overflow", where="lm_head.weight"):
        write_gguf(folder, tmp_path / "model.gguf", type="f32")


@pytest.mark.parametrize("kind", ["gpt_neo", "granite", "phi"])
def test_unknown_architectures(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", kind)
    (folder / "model.safetensors").write_bytes(b"not read")
    with raises(RecipeError, "gguf-unsupported") as error:
        write_gguf(folder, tmp_path / "model.gguf", type="f16")
    assert all(name in error.value.message for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
        ("qwen2", {"rope_parameters": _LLAMA3}),
        ("gpt_neox", {"rope_parameters": {**_YARN, "partial_rotary_factor": 0.5}}),
        ("llama", {"rope_parameters": {**_YARN, "truncate": False}}),
        ("qwen3", {"attention_bias": True}),
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("gemma2", {"tie_word_embeddings": False}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "relu"}),
    ],
)
def test_settings_that_llama_cpp_lacks(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", kind, **changes)
    (folder / "model.safetensors").write_bytes(b"not read")
    with raises(RecipeError, "gguf-unsupported"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_windows_limit_the_context(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "mistral")
    warnings = write_gguf(folder, tmp_path / "model.gguf", type="f16")
    assert read(tmp_path / "model.gguf")["llama.context_length"] == 16
    assert len(warnings) == 1


@pytest.mark.parametrize("differs", [True, False])
def test_tied_output_that_was_saved_too(differs: bool, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"][-1, -1] += float(differs)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if differs:
        with raises(RecipeError, "weights-mismatch"):
            write_gguf(folder, tmp_path / "model.gguf", type="f16")
    else:
        write_gguf(folder, tmp_path / "model.gguf", type="f16")
        assert "output.weight" not in {tensor.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}


def test_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama", vocab_size=len(tiny.make_tokenizer()) - 1)
    with raises(RecipeError, "vocabulary-mismatch"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_unknown_pre_tokenizer(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "model")
    save_unknown_pre_tokenizer(folder)
    with raises(RecipeError, "gguf-unsupported"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_extra_weights(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.further.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with raises(RecipeError, "gguf-unsupported"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_no_end_of_text(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "model")
    tokenizer = tiny.make_tokenizer(None)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with raises(RecipeError, "no-stop-token"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_files_and_types_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_text("mine")
    with raises(RecipeError, "exists"):
        write_gguf(tmp_path / "nothing", tmp_path / "there.gguf", type="f16")
    with raises(RecipeError, "unknown-gguf-type"):
        write_gguf(tmp_path / "nothing", tmp_path / "new.gguf", type="f61")
    with raises(RecipeError, "no-model"):
        write_gguf(tmp_path, tmp_path / "new.gguf", type="f16")
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_quantized_folders(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with raises(RecipeError, "already-quantized"):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")


def test_damaged_weights(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    with raises(DamagedFile, "damaged-file", where=str(folder / "model.safetensors")):
        write_gguf(folder, tmp_path / "model.gguf", type="f16")
    assert not (tmp_path / "model.gguf").exists()


def test_full_disk_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with raises(DoesNotFit, "disk-full"):
        write_gguf(llama, tmp_path / "model.gguf", type="f16")
    assert list(tmp_path.iterdir()) == []
