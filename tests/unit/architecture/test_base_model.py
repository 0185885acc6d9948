"""Checks of a base model's folder that read no weights."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.tiny import save_model, save_plain_model, save_seq2seq

from tunesmith.architecture.base_model import (
    check_targets,
    read_config,
    refuse_quantized,
    require_embedding_rows,
    require_layers,
    require_trainable_rows,
    require_vocabulary,
    stored_quantization,
)
from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.weight_headers import tensor_shapes
from tunesmith.core.errors import DamagedFile, RecipeError


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    return copytree(tiny, tmp_path / "model")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes, 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8 bits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bits"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "fp8"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "an unnamed method, 4 bits"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
    ],
)
def test_quantized_base_is_refused(folder: Path, changes: dict[str, Any], method: str) -> None:
    assert stored_quantization(folder) is None
    refuse_quantized(folder)
    change_config(folder, **changes)
    assert stored_quantization(folder) == method
    with raises(RecipeError, "already-quantized", method, "qlora"):
        refuse_quantized(folder)


@pytest.mark.parametrize(("name", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_quantization_settings_in_a_separate_file_are_found(folder: Path, name: str, method: str) -> None:
    (folder / name).write_text('{"bits": 4}')
    assert stored_quantization(folder) == method


def test_config_that_is_not_a_json_object_is_damaged(folder: Path) -> None:
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(DamagedFile):
            read_config(folder)


def test_vocabulary_is_that_of_the_embedding_in_the_weights(folder: Path) -> None:
    require_vocabulary(folder, 320)
    for wrong in (322, 0):
        with raises(RecipeError, "vocabulary-mismatch", wrong or "no vocab_size", 320, where="config.json"):
            require_vocabulary(folder, wrong)
    (folder / "model.safetensors").unlink()
    require_vocabulary(folder, 322)  # without weights, there is nothing to compare


def test_token_beyond_the_embedding_is_refused() -> None:
    require_embedding_rows(319, 320, where="model")
    with raises(RecipeError, "vocabulary-mismatch", "token 320", where="model"):
        require_embedding_rows(320, 320, where="model")


@pytest.mark.parametrize(
    "target", [["q_proj"], ["self_attn.q_proj", "lm_head"], ["model.layers.0.mlp.up_proj"], ["embed_tokens"],
               ["base.model.layers.1.mlp.up_proj"]],
)  # fmt: skip
def test_valid_targets_pass(folder: Path, target: Sequence[str]) -> None:
    check_targets(folder, shapes_of(folder), target)


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (["nope"], "nope"),
        (["q_proj", "vproj", "query"], "vproj, query"),
        (["model.layers.9.mlp.up_proj"], "model.layers.9.mlp.up_proj"),
        (["proj"], "proj"),
        (["q_proj", "input_layernorm"], "`input_layernorm`"),
    ],
)
def test_wrong_target_among_valid_ones_is_refused(folder: Path, target: Sequence[str], named: str) -> None:
    with raises(RecipeError, "wrong-target", named, where="tuning.target") as caught:
        check_targets(folder, shapes_of(folder), target)
    assert "embed_out" not in (caught.value.hint or ""), "only names that the model has are suggested"


def test_targets_without_weights_are_checked_against_the_architecture(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    check_targets(folder, shapes_of(folder), ["q_proj", "embed_tokens"])
    with raises(RecipeError, "wrong-target", "vproj"):
        check_targets(folder, shapes_of(folder), ["q_proj", "vproj"])


def test_targets_match_names_without_the_first_part_of_the_path(tmp_path: Path) -> None:
    folder = save_plain_model(tmp_path / "gpt2", "gpt2")
    check_targets(folder, shapes_of(folder), ["c_attn", "transformer.h.0.attn.c_proj"])
    with raises(RecipeError, "wrong-target", "q_proj"):
        check_targets(folder, shapes_of(folder), ["q_proj"])


def test_new_tokens_with_an_output_bias_are_refused(tmp_path: Path, tiny: Path) -> None:
    phi = save_plain_model(tmp_path / "phi", "phi")
    require_trainable_rows(tiny, shapes_of(tiny))
    with raises(RecipeError, "untrainable-rows"):
        require_trainable_rows(phi, shapes_of(phi))


@pytest.mark.parametrize("length", [0, 4, 200, -1])
def test_truncated_weight_file_is_damaged(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with raises(DamagedFile, "damaged-file", where=str(file)) as caught:
        tensor_shapes(folder)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("header", [b"[1]", b'{"x": 1}', b'{"x": {"data_offsets": "ab"}}', b"\xff"])
def test_invalid_safetensors_header_is_damaged(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DamagedFile):
        tensor_shapes(folder)


def test_weight_index_is_compared_with_the_files(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    names = list(tensor_shapes(folder))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert list(tensor_shapes(folder)) == names
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, "model.safetensors"), "x": "two.safetensors"}}))
    with raises(RecipeError, "weights-missing", "two.safetensors"):
        tensor_shapes(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*names, "x"], "model.safetensors")}))
    with raises(DamagedFile, "damaged-file", "tensor x"):
        tensor_shapes(folder)
    for text in ("{", "{}", '{"weight_map": [1]}'):
        index.write_text(text)
        with pytest.raises(DamagedFile):
            tensor_shapes(folder)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart", "olmo2", "without the first part"])
def test_layer_counts_of_weights_and_configuration_are_compared(tmp_path: Path, kind: str, layers: int) -> None:
    """`olmo2` is not a known architecture, so that only missing layers are an error."""
    folder = tmp_path / "model"
    if kind in ("t5", "bart"):
        save_seq2seq(folder, kind)
    else:
        save_model(folder, "llama" if kind == "without the first part" else kind)
    if kind == "without the first part":
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name.removeprefix("model."): weight for name, weight in weights.items()}, folder / "model.safetensors"
        )
    key = {"gpt2": "n_layer", "t5": "num_layers", "bart": "encoder_layers"}.get(kind, "num_hidden_layers")
    change_config(folder, **{key: layers})
    if layers == 2 or (layers == 1 and kind == "olmo2"):
        require_layers(folder, shapes_of(folder))
        return
    with raises(RecipeError, "layer-mismatch", f"{layers} layers", where="config.json"):
        require_layers(folder, shapes_of(folder))
