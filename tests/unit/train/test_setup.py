"""The dtype in which the model to train is loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.tiny import save_model
from tests.unit.train.conftest import FULL, recipe_of

from tunesmith.fetch.reference import resolve
from tunesmith.model.load import ComputeConfig
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.train.setup import load_model_to_train


@pytest.mark.parametrize(
    ("kind", "is_sharded", "dtype"),
    [
        ("llama", True, torch.bfloat16),
        ("llama", False, torch.float32),
        ("gemma3_text", True, torch.float32),  # it computes constants when it is built
    ],
)
def test_model_to_shard_is_loaded_in_its_stored_dtype(
    kind: str, is_sharded: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / kind, kind)
    weights = folder / "model.safetensors"
    save_file({n: w.bfloat16() for n, w in load_file(weights).items()}, weights, metadata={"format": "pt"})
    base, recipe = resolve(str(folder)), recipe_of(folder, FULL)
    compute, tokenizer = ComputeConfig(torch.device("cpu"), torch.float32), load_tokenizer(base, None)
    model = load_model_to_train(recipe, base, compute, tokenizer, is_sharded=is_sharded)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
