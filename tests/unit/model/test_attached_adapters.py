"""Adapters are attached as peft saved them, and damaged or foreign ones are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.errors import raises
from tests.support.opened import Opened
from tests.unit.model.conftest import DORA, FP32, LORA, WEIGHTS, logits

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapters import attach_adapter, save_model
from tunesmith.model.load import load_base
from tunesmith.model.trainable import make_trainable, trained_parameters


def test_adapters_made_by_peft_are_attached(opened: Opened, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "some": {"layers_to_transform": [1]},
        "embedding": {"target_modules": ["embed_tokens"]},
        "head": {"modules_to_save": ["lm_head"]},
    }
    for name, settings in kinds.items():
        config = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
        config |= {"init_lora_weights": False, **settings}
        model = get_peft_model(opened("llama"), LoraConfig(**config))
        model.save_pretrained(tmp_path / name)
        assert torch.equal(logits(attach_adapter(opened("llama"), tmp_path / name)), logits(model)), name


def test_adapter_other_than_lora_is_attached(opened: Opened, tmp_path: Path) -> None:
    from peft import IA3Config

    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = get_peft_model(opened("llama"), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ia3_" in name:
                weight.fill_(1.5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(attach_adapter(opened("llama"), tmp_path)), logits(model))


def test_zero_adapter_is_refused(opened: Opened, tmp_path: Path) -> None:
    save_model(make_trainable(opened("llama"), LORA, seed=0), tmp_path, base="org/base")
    with raises(DamagedFile, "zero-adapter"):
        attach_adapter(opened("llama"), tmp_path)


def test_adapter_that_changes_only_dora_magnitudes_is_attached(opened: Opened, tmp_path: Path) -> None:
    model = make_trainable(opened("llama"), DORA, seed=0)
    with torch.no_grad():
        for name, weight in trained_parameters(model):
            if "magnitude" in name:
                weight *= 1.1
    save_model(model, tmp_path, base="org/base")
    assert torch.equal(logits(attach_adapter(opened("llama"), tmp_path)), logits(model))


@pytest.mark.parametrize(("kind", "refused"), [("gpt2", True), ("qwen3", False)])
def test_adapter_of_another_model_is_refused(opened: Opened, adapter: Path, kind: str, refused: bool) -> None:
    if refused:
        with raises(DamagedFile, "weights-mismatch"):
            attach_adapter(opened(kind), adapter)
    else:  # qwen3 has the same modules and sizes
        attach_adapter(opened(kind), adapter)


def test_adapter_with_another_shape_is_refused(opened: Opened, altered: Callable[..., Path]) -> None:
    folder = altered(lambda weights: weights.update({name: torch.ones(8, 7) for name in sorted(weights)[:1]}))
    with raises(DamagedFile, "weights-mismatch"):
        attach_adapter(opened("llama"), folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]])
def test_truncated_adapter_file_is_refused(
    opened: Opened, adapter: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(adapter, tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).write_bytes(damage((adapter / WEIGHTS).read_bytes()))
    with pytest.raises(DamagedFile):
        attach_adapter(opened("llama"), tmp_path / "copy")


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self._trace,))


@pytest.mark.parametrize("kind", ["adapter", "model", "sharded"])
def test_pickle_is_never_read(
    opened: Opened, adapter: Path, folder_of: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    source = adapter if kind == "adapter" else folder_of("llama")
    shutil.copytree(source, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*.safetensors"):
        file.unlink()
    name = {
        "adapter": "adapter_model.bin",
        "model": "pytorch_model.bin",
        "sharded": "pytorch_model-00001-of-00002.bin",
    }[kind]
    torch.save(Boom(tmp_path / "read"), tmp_path / "copy" / name)
    with raises(RecipeError, "pickle"):
        _ = (
            attach_adapter(opened("llama"), tmp_path / "copy")
            if kind == "adapter"
            else load_base(ModelFolder("x", tmp_path / "copy"), FP32)
        )
    assert not (tmp_path / "read").exists()


def test_adapter_without_weights_is_refused_instead_of_downloaded(
    opened: Opened, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).unlink()
    with raises(RecipeError, "no-weights", WEIGHTS):
        attach_adapter(opened("llama"), tmp_path / "copy")
