"""Settings of tiny adapters, models with random updates, and a saved adapter."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.opened import Opened

from tunesmith.model.adapters import save_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import FullTuning, LoraTuning

IDS = torch.arange(5, 45).reshape(2, 20)
FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
LORA = LoraTuning(method="lora", rank=4, alpha=8)
DORA = LoraTuning(method="lora", rank=4, alpha=8, dora=True)
RSLORA = LoraTuning(method="lora", rank=4, alpha=8, rslora=True)
FULL = FullTuning(method="full")
WEIGHTS = "adapter_model.safetensors"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
        return result


def tuned(model: Any, tuning: Any, *, seed: int = 0) -> Any:
    """Return a trainable model with random changes to its trained weights."""
    trainable = make_trainable(model, tuning, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, weight in trained_parameters(trainable):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return trainable


@pytest.fixture(scope="module")
def adapter(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "one"
    save_model(tuned(opened("llama"), LORA), folder, base="org/base")
    return folder


@pytest.fixture
def altered(adapter: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], Any]], Path]:
    """Return a function that copies the adapter with changed weights."""

    def copy(change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
        shutil.copytree(adapter, tmp_path / "copy")
        weights = load_file(adapter / WEIGHTS)
        change(weights)
        save_file(weights, tmp_path / "copy" / WEIGHTS)
        return tmp_path / "copy"

    return copy
