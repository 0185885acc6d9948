"""Saved models load in plain peft and transformers with equal logits, and incomplete ones are refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.opened import Opened
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapters import (
    attach_adapter,
    check_freeze,
    make_trainable,
    open_model,
    restore_weights,
    save_model,
    trained_parameters,
)
from tunesmith.model.load import ComputeConfig, load_base
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


# --- trained parameters ---


def test_full_tuning_trains_all_parameters(opened: Opened) -> None:
    model = make_trainable(opened("gpt2"), FULL, seed=0)
    assert len(list(trained_parameters(model))) == len(list(model.parameters()))


def test_frozen_modules_are_not_trained_and_stay_as_they_are(opened: Opened, tmp_path: Path) -> None:
    freeze = FullTuning.model_validate({"method": "full", "freeze": ["embed_tokens", "layers.0"]})
    base = {name: weight.clone() for name, weight in opened("llama").named_parameters()}
    model = make_trainable(opened("llama"), freeze, seed=0)
    trained = {name for name, _ in trained_parameters(model)}
    assert {name for name in base if name not in trained} == {
        name for name in base if "embed_tokens" in name or ".layers.0." in name
    }
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained
    optimizer = torch.optim.AdamW([weight for _, weight in trained_parameters(model)], lr=0.1)
    optimizer.step()
    save_model(model, tmp_path, base="org/base")
    restored = make_trainable(opened("llama"), freeze, seed=1)
    restore_weights(restored, tmp_path)
    for name, weight in restored.named_parameters():
        assert torch.equal(weight, base[name]) is (name not in trained), name


def test_freezing_either_name_of_a_tied_weight_freezes_it(opened: Opened) -> None:
    model = make_trainable(opened("gpt2"), FullTuning.model_validate({"method": "full", "freeze": ["lm_head"]}), seed=0)
    assert not any("wte" in name for name, _ in trained_parameters(model))


@pytest.mark.parametrize(
    ("kind", "patterns"),
    [
        ("llama", ["wte"]),  # the embedding of other architectures
        ("llama", ["embed_tokens", "layers", "norm", "lm_head"]),  # everything
        ("mixtral", ["layers.*.block_sparse_moe"]),  # the name in the files
        ("t5", ["decoder.block.7"]),
    ],
)
def test_patterns_that_training_refuses_are_refused_before(
    opened: Opened, folder_of: Callable[[str], Path], kind: str, patterns: list[str]
) -> None:
    with raises(RecipeError, "no-module"):
        make_trainable(opened(kind), FullTuning(method="full", freeze=tuple(patterns)), seed=0)
    with raises(RecipeError, "no-module", where="tuning.freeze"):
        check_freeze(folder_of(kind), patterns)


@pytest.mark.parametrize("pattern", ["embed_tokens", "model.layers.0", "layers.1.mlp", "lm_head", "*norm"])
def test_patterns_that_training_takes_are_accepted_before(
    opened: Opened, folder_of: Callable[[str], Path], pattern: str
) -> None:
    check_freeze(folder_of("llama"), [pattern])
    make_trainable(opened("llama"), FullTuning(method="full", freeze=(pattern,)), seed=0)


def test_freeze_patterns_that_name_nothing_are_refused(opened: Opened) -> None:
    with raises(RecipeError, "no-module", "layer.0", "`layers.0`", where="tuning.freeze"):
        make_trainable(opened("llama"), FullTuning.model_validate({"method": "full", "freeze": ["layer.0"]}), seed=0)


def test_lora_trains_adapters_only_and_starts_equal_to_the_base(opened: Opened) -> None:
    model = make_trainable(opened("llama"), LORA, seed=0)
    names = [name for name, _ in trained_parameters(model)]
    assert len(names) == 28
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert torch.equal(logits(model), logits(opened("llama")))


def test_rslora_scales_by_the_root_of_the_rank(opened: Opened) -> None:
    plain, rslora = (make_trainable(opened("llama"), tuning, seed=0) for tuning in (LORA, RSLORA))
    scales = [model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] for model in (plain, rslora)]
    assert scales == [8 / 4, 8 / 4**0.5]


def test_dora_trains_magnitudes_and_starts_equal_to_the_base(opened: Opened) -> None:
    model = make_trainable(opened("llama"), DORA, seed=0)
    assert len(list(trained_parameters(model))) == 42
    torch.testing.assert_close(logits(model), logits(opened("llama")))


def test_dora_of_unsupported_layers_is_refused(opened: Opened) -> None:
    with raises(RecipeError, "wrong-target", "tuning"):
        make_trainable(opened("lfm2"), DORA.model_copy(update={"target": ("conv",)}), seed=0)


def test_adapter_initialization_depends_on_the_seed_only(opened: Opened) -> None:
    def initialize(seed: int) -> list[torch.Tensor]:
        torch.rand(seed + 5)  # the state of the generator must not matter
        return [weight for _, weight in trained_parameters(make_trainable(opened("llama"), LORA, seed=seed))]

    first, again, other = initialize(3), initialize(3), initialize(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_unknown_target_is_refused_with_the_known_ones(opened: Opened) -> None:
    for target in (("q_prj",), ("q_proj", "q_prj"), ("proj",), ("mlp",)):
        with raises(RecipeError, "wrong-target", target[-1], "q_proj"):
            make_trainable(opened("llama"), LoraTuning(method="lora", target=target), seed=0)
    with raises(RecipeError, "wrong-target", "LlamaRMSNorm"):
        make_trainable(opened("llama"), LoraTuning(method="lora", target=("input_layernorm",)), seed=0)
    model = make_trainable(opened("llama"), LoraTuning(method="lora", target=("q_proj",)), seed=0)
    assert {name.split(".")[-4] for name, _ in trained_parameters(model)} == {"q_proj"}


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


# --- attach_adapter ---


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
