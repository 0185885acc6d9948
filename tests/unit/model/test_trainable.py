"""The trained parameters of each tuning method, and wrong targets and patterns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import Opened
from tests.support.tiny import save_seq2seq
from tests.unit.model.conftest import DORA, FP32, FULL, IDS, LORA, RSLORA, logits

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.adapters import open_model, restore_weights, save_model
from tunesmith.model.trainable import check_freeze, make_trainable, trained_parameters
from tunesmith.recipe.tuning import FullTuning, LoraTuning


def test_full_tuning_trains_all_parameters(opened: Opened) -> None:
    model = make_trainable(opened("gpt2"), FULL, seed=0)
    assert len(list(trained_parameters(model))) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", ["marian", "pegasus"])
def test_full_tuning_trains_only_what_is_saved(tmp_path: Path, kind: str) -> None:
    base = ModelFolder("org/base", save_seq2seq(tmp_path / "base", kind))
    model = make_trainable(open_model(base, FP32), FULL, seed=0)
    with torch.no_grad():
        for _, weight in trained_parameters(model):
            weight += 0.1
    save_model(model, tmp_path / "tuned", base=base.reference)
    saved = open_model(ModelFolder("tuned", tmp_path / "tuned"), FP32).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in trained_parameters(model))


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
