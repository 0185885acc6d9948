"""The shapes of a model derived from its configuration alone equal those of its weights."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.published import PUBLISHED
from tests.support.tiny import save_model, save_seq2seq

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.weight_headers import shapes_from_headers
from tunesmith.core.errors import RecipeError
from tunesmith.estimate.activations import MicroBatchShape
from tunesmith.estimate.memory import estimate_memory, layer_parameter_counts
from tunesmith.recipe.schema import Recipe

KINDS = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite")
SEQ2SEQ = ("t5", "flan-t5", "mt5", "bart")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {kind: save_model(root / kind, kind) for kind in KINDS}
    return made | {kind: save_seq2seq(root / kind, kind) for kind in SEQ2SEQ}


def copy_config(folder: Path, target: Path) -> Path:
    """Make a folder with only the configuration of a model, and return it."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


@pytest.mark.parametrize("kind", [*KINDS, *SEQ2SEQ])
def test_shapes_from_the_configuration_equal_those_of_the_weights(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    derived = shapes_of(copy_config(folders[kind], tmp_path / "m"))
    read = shapes_from_headers(folders[kind], json.loads((folders[kind] / "config.json").read_text()))
    assert (derived.known, read.known) == (True, False)
    assert (derived.parameters, derived.hidden, derived.vocabulary) == (read.parameters, read.hidden, read.vocabulary)
    # GPT-2 stores weights as [in, out], which a header does not show.
    sizes = {name: sorted((part.out_features, part.in_features)) for name, part in read.linear()}
    assert {name: sorted((part.out_features, part.in_features)) for name, part in derived.linear()} == sizes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_parameter_count(tmp_path: Path, name: str) -> None:
    config, size = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shapes_of(tmp_path).parameters == pytest.approx(size, rel=0.005)


def test_unknown_architecture_is_read_from_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copytree(folders["llama"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"model_type": "unknown_model"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    shapes = shapes_of(tmp_path / "m")
    assert shapes.parameters == shapes_of(folders["llama"]).parameters
    with raises(RecipeError, "unknown-shapes", "unknown_model"):
        shapes_of(copy_config(tmp_path / "m", tmp_path / "config-only"))


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": None}, {"num_attention_heads": [2, 4]}, {"text_config": None}]
)
def test_sizes_missing_in_the_configuration_are_read_from_the_weights(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    """Publishers omit defaults, and some give a list with a size per layer."""
    copytree(folders["llama"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None or key == "text_config"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    if change == {"num_attention_heads": [2, 4]}:
        with raises(RecipeError, "unknown-shapes", where="config.json"):
            shapes_of(tmp_path / "m")
        return
    shapes = shapes_of(tmp_path / "m")
    assert shapes.parameters == shapes_of(folders["llama"]).parameters
    assert shapes.known == ("text_config" in change)
    if not shapes.known:
        with raises(RecipeError, "unknown-shapes", "llama"):
            shapes_of(copy_config(tmp_path / "m", tmp_path / "config-only"))


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_memory_estimate_of_an_unknown_architecture_is_roughly_right(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    copytree(folders[kind], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"model_type": "unknown_model"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    known, guessed = shapes_of(folders[kind]), shapes_of(tmp_path / "m")
    in_layers, two_layers = layer_parameter_counts(known)
    assert layer_parameter_counts(guessed) == (in_layers, pytest.approx(two_layers, rel=0.5))
    assert guessed.has_encoder == known.has_encoder == (kind == "bart")
    source = {"source_tokens": 4096, "source_width": 512} if kind == "bart" else {}
    micro_batch = MicroBatchShape(1024, 128, 64, **source)
    for changes in ({}, {"activation_checkpointing": True}):
        recipe = lora(kind, **changes)
        sizes = [
            estimate_memory(recipe, shapes, micro_batch, compute_bytes=4).activations for shapes in (known, guessed)
        ]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.5)


def lora(kind: str, **train: Any) -> Recipe:
    task = {"task": "seq2seq", "prompt": "{q}", "response": "{a}"} if kind == "bart" else {"task": "text", "text": "t"}
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"}, "data": {**task, "source": {"file": "x.csv"}},
        "tuning": {"method": "lora", "rank": 4}, "train": {"learning_rate": 1e-4, **train},
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    })  # fmt: skip


def test_attention_window_is_the_smallest_of_all_layers(folders: dict[str, Path]) -> None:
    assert shapes_of(folders["mistral"]).attention_window == 16
    assert shapes_of(folders["gpt_neo"]).attention_window == 16
    assert shapes_of(folders["llama"]).attention_window == 2**31


def test_weights_stored_twice_count_once(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folders["llama"]).save_pretrained(tmp_path, max_shard_size="30KB")

    def read(folder: Path) -> Any:
        return shapes_from_headers(folder, json.loads((folder / "config.json").read_text()))

    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 2
    assert read(tmp_path) == read(folders["llama"])
    # Mistral's repositories store all weights again under other names.
    duplicates = {f"other.{name}": weight for part in parts for name, weight in load_file(part).items()}
    save_file(duplicates, tmp_path / "consolidated.safetensors")
    assert read(tmp_path) == read(folders["llama"])
    parts[0].rename(tmp_path / "renamed")
    with raises(RecipeError, "weights-missing", parts[0].name):
        read(tmp_path)
    AutoModelForCausalLM.from_pretrained(folders["llama"]).save_pretrained(tmp_path / "one")
    save_file(duplicates, tmp_path / "one" / "consolidated.safetensors")
    assert read(tmp_path / "one") == read(folders["llama"])


def test_text_config_of_a_multimodal_model_is_used(folders: dict[str, Path], tmp_path: Path) -> None:
    copytree(folders["gemma3_text"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    assert shapes_of(tmp_path / "m") == shapes_of(folders["gemma3_text"])
