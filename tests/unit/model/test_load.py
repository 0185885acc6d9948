"""A model is refused if its weights and its configuration disagree."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.tiny import save_model

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.model.load import ComputeConfig, load_base

CPU = ComputeConfig(torch.device("cpu"), torch.float32)


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
