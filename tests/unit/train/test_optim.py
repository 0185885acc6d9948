"""Optimizers equal their formulas, and resume from their saved state; clipping never scales gradients up."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.unit.train.conftest import FULL, NO_DROPOUT, MakeSetup, same, weights

from tunesmith.core.errors import DamagedFile
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.model.trainable import trained_parameters
from tunesmith.train.loop import train_steps
from tunesmith.train.optim import clip_gradients, make_optimizer, optimizer_tensors, restore_optimizer


def test_weight_decay_applies_to_matrices_only(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(FULL, weight_decay=0.3, beta1=0.8, beta2=0.95)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(decays) == len(list(setup.model.parameters()))
    assert all(decays[id(weight)] == (0.3 if weight.ndim >= 2 else 0.0) for weight in setup.model.parameters())
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    lora, optimizer = new_setup(weight_decay=0.3)
    assert len(optimizer.param_groups) == 1  # adapters have no vectors
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trained_parameters(lora.model)))


OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor", "muon", "sgd")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_every_optimizer_learns_and_resumes_from_its_saved_state(
    new_setup: MakeSetup, tuning: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    rate = {"sgd": 0.5, "adafactor": 0.1}.get(name, 0.01)
    settings = {"optimizer": name, "learning_rate": rate, "epochs": 6, "schedule": "constant"}
    setup, optimizer = new_setup(tuning, **settings)
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert reports[-1].loss < reports[0].loss - 0.05
    expected = weights(setup.model)
    first, optimizer = new_setup(tuning, **settings)
    list(itertools.islice(train_steps(first, optimizer, first_step=0), 7))
    save_file(optimizer_tensors(first.model, optimizer), tmp_path / "optimizer.safetensors")
    second = make_optimizer(first.model, first.recipe.train)
    restore_optimizer(first.model, second, load_file(tmp_path / "optimizer.safetensors"))
    list(train_steps(first, second, first_step=7))
    assert torch.equal(weights(first.model), expected)


def test_adamw_8bit_keeps_fp32_moments_of_small_weights(new_setup: MakeSetup) -> None:
    pytest.importorskip("bitsandbytes")
    setup, optimizer = new_setup(FULL, optimizer="adamw_8bit")
    next(train_steps(setup, optimizer, first_step=0))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert {str(value.dtype) for key, value in tensors.items() if key.endswith("state1")} == {
        "torch.uint8", "torch.float32",
    }  # fmt: skip


def test_sgd_step_equals_the_formula(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(FULL, optimizer="sgd", max_gradient_norm=1e9, schedule="constant", warmup_fraction=0.0)
    before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, weight in setup.model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.update({name: w.grad.clone()}))
    next(train_steps(setup, optimizer, first_step=0))
    for name, weight in setup.model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] - 0.01 * gradients[name])


@pytest.mark.parametrize("max_norm", [0.3, 1e9])
def test_clip_gradients_never_scales_up(max_norm: float) -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([4.0, 0.0])
    norm = math.sqrt(6 * 9 + 16)
    assert clip_gradients(model, max_norm, ProcessGroup()) == pytest.approx(norm)
    after = math.sqrt(float(model.weight.grad.pow(2).sum() + model.bias.grad.pow(2).sum()))
    assert after == pytest.approx(min(norm, max_norm), rel=1e-4)


def test_clip_gradients_leaves_non_finite_gradients_unchanged() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([math.inf, 0.0])
    assert clip_gradients(model, 1.0, ProcessGroup()) == math.inf
    assert float(model.weight.grad[0, 0]) == 3.0


def test_clip_gradients_ignores_weights_without_gradient() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    assert clip_gradients(model, 1e9, ProcessGroup()) == pytest.approx(math.sqrt(6))


def test_optimizer_state_round_trip(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup()
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 2))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert len(tensors) == 3 * len(list(trained_parameters(setup.model)))
    assert {float(value) for name, value in tensors.items() if name.endswith(".step")} == {2.0}
    _, fresh = new_setup()
    restore_optimizer(setup.model, fresh, tensors)
    again = optimizer_tensors(setup.model, fresh)
    assert same(tensors, again)
    assert list(again) == list(tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.pop(sorted(tensors)[0]),
        lambda tensors: tensors.update({"elsewhere.exp_avg": torch.zeros(1)}),
    ],
)
def test_optimizer_state_of_another_model_is_refused(
    new_setup: MakeSetup, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    setup, optimizer = new_setup()
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    change(tensors)
    with raises(DamagedFile, "wrong-optimizer-state"):
        restore_optimizer(setup.model, new_setup()[1], tensors)


def test_weight_without_gradient_has_no_optimizer_state(new_setup: MakeSetup) -> None:
    setup, _ = new_setup()
    setup.model.register_parameter("spare", torch.nn.Parameter(torch.ones(2, 2)))
    optimizer = make_optimizer(setup.model, setup.recipe.train)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert not any("spare" in name for name in tensors)
    restore_optimizer(setup.model, make_optimizer(setup.model, setup.recipe.train), tensors)
