"""A non-finite loss or gradient never updates a weight, and fp16 lowers its loss scale instead."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.unit.train.conftest import FULL, NO_DROPOUT, MakeSetup, all_state, same

from tunesmith.core.errors import NonFinite
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.trainable import trained_parameters
from tunesmith.train import loop
from tunesmith.train.loop import train_steps


def poison(monkeypatch: pytest.MonkeyPatch, at_call: int, value: float) -> None:
    """Multiply the loss of one micro-batch by a non-finite value."""
    calls = itertools.count(1)

    def broken(model: Any, batch: Any) -> Any:
        result = token_loss(model, batch)
        return replace(result, nll=result.nll * value) if next(calls) == at_call else result

    monkeypatch.setattr(loop, "token_loss", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at_call", [1, 5, 6])  # the first micro-batch; the first and the last one of step 3
def test_non_finite_loss_updates_no_weight(
    new_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, value: float, at_call: int
) -> None:
    setup, optimizer = new_setup(micro_batch=4)  # of 8 rows a step, so a step is two calls
    poison(monkeypatch, at_call, value)
    steps = train_steps(setup, optimizer, first_step=0)
    done = (at_call - 1) // 2
    assert [report.step for report in itertools.islice(steps, done)] == list(range(1, done + 1))
    before = all_state(setup, optimizer)
    with raises(NonFinite, "non-finite", value, f"step {done + 1}, rows [") as caught:
        next(steps)
    assert same(before, all_state(setup, optimizer))
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_non_finite_gradient_updates_no_weight(new_setup: MakeSetup, tuning: dict[str, Any], value: float) -> None:
    setup, optimizer = new_setup(tuning)
    steps = train_steps(setup, optimizer, first_step=0)
    next(steps)
    before = all_state(setup, optimizer)
    _, weight = list(trained_parameters(setup.model))[-1]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    weight.register_hook(spoil)
    with raises(NonFinite, "non-finite", "gradient norm"):
        next(steps)
    assert same(before, all_state(setup, optimizer))


def test_nan_in_a_weight_is_detected_in_the_next_step(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(FULL)
    with torch.no_grad():
        setup.model.get_output_embeddings().weight[7, 0] = math.nan
    with pytest.raises(NonFinite):
        next(train_steps(setup, optimizer, first_step=0))


@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_fp16_follows_fp32(new_setup: MakeSetup, tuning: dict[str, Any]) -> None:
    setup, optimizer = new_setup(tuning)
    expected = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = new_setup(tuning, torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**16), optimizer, first_step=0))
    assert [report.loss for report in reports] == pytest.approx(expected, rel=2e-2)
    assert expected[-1] < expected[0] - 0.05


def test_loss_scale_is_halved_on_overflow_and_the_step_repeated(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(dtype=torch.float16)
    expected = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    setup, optimizer = new_setup(dtype=torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**40), optimizer, first_step=0))
    assert 2.0**10 < reports[0].loss_scale < 2.0**30
    assert [report.step for report in reports] == [report.step for report in expected]
    assert [report.loss for report in reports] == pytest.approx([report.loss for report in expected], rel=1e-2)
    norms = [report.gradient_norm for report in expected]
    assert [report.gradient_norm for report in reports] == pytest.approx(norms, rel=5e-2)


def test_loss_scale_doubles_after_enough_steps(new_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_TO_DOUBLE_LOSS_SCALE", 2)
    setup, optimizer = new_setup(dtype=torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    assert [math.log2(report.loss_scale) for report in reports] == [10, 10, 11, 11, 12, 12]
    setup, optimizer = new_setup()
    assert {report.loss_scale for report in train_steps(setup, optimizer, first_step=0)} == {1.0}
