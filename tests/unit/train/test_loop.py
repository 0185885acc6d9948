"""Steps do not depend on the micro-batches, equal formulas and resume bit for bit; measures are means over tokens."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.unit.train.conftest import BOTH, FULL, LORA, NO_DROPOUT, ROWS, MakeSetup, all_state, same, weights

from tunesmith.core.records import StepReport
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.sampler import batch_indices
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.trainable import trained_parameters
from tunesmith.recipe.schedule import learning_rate_at
from tunesmith.train.loop import measure, train_steps


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batch_size_does_not_change_the_trajectory(
    new_setup: MakeSetup, tuning: dict[str, Any], dtype: torch.dtype
) -> None:
    results: dict[Any, tuple[list[StepReport], torch.Tensor]] = {}
    for size, packing in (
        (8, "never"),
        (1, "never"),
        (2, "never"),
        (2, "always"),
        ("auto", "never"),
        ("auto", "always"),
    ):
        setup, optimizer = new_setup(tuning, dtype, micro_batch=size, packing=packing)
        initial = weights(setup.model)
        results[size, packing] = (list(train_steps(setup, optimizer, first_step=0)), weights(setup.model))
    reports, final = results[8, "never"]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    distance = float((final - initial).norm())
    assert distance > 0.1
    for size, (other_reports, weight) in results.items():
        for report, other in zip(reports, other_reports, strict=True):
            exact = ("step", "learning_rate", "tokens", "trained_tokens")
            assert all(getattr(report, name) == getattr(other, name) for name in exact)
            assert other.loss == pytest.approx(report.loss, rel=2e-6)
            assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-4)
        error = weight - final
        assert float(error.norm()) < 2e-3 * distance, size
        # Rounding errors have both signs; a mean over micro-batches instead of tokens would be biased.
        signs = error[error != 0].sign()
        if len(signs) > 100:
            assert abs(float(signs.mean())) < 5 / math.sqrt(len(signs)) + 0.1, size


def test_loss_is_the_mean_over_the_trained_tokens_of_the_step(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(micro_batch=1)
    rows = batch_indices(0, rows=ROWS, examples_per_step=8, total_examples=48, seed=0)
    with torch.inference_mode():
        parts = [token_loss(setup.model, setup.tokens.batch([row], 2)).nll for row in rows]
    [report] = itertools.islice(train_steps(setup, optimizer, first_step=0), 1)
    assert report.loss == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)
    assert report.loss != pytest.approx(float(torch.stack([part.mean() for part in parts]).mean()), rel=1e-3)
    assert report.trained_tokens == sum(map(len, parts))
    assert report.tokens == sum(int(setup.tokens.lengths[row]) for row in rows)


def test_step_equals_adamw_by_formula(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(FULL, max_gradient_norm=1e9, weight_decay=0.1, warmup_fraction=0.5)
    before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, weight in setup.model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.update({name: w.grad.clone()}))
    reports = list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    rate = reports[0].learning_rate
    assert rate == pytest.approx(0.01 / 3) == learning_rate_at(setup.recipe, setup.plan, 0)
    norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients.values()))
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-5)
    for name, weight in setup.model.named_parameters():
        decay = 0.1 if weight.ndim >= 2 else 0.0  # norms do not decay
        gradient = gradients[name]
        expected = before[name] * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_learning_rates_follow_the_schedule(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(warmup_fraction=0.3, schedule="linear")
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert [report.learning_rate for report in reports] == [
        learning_rate_at(setup.recipe, setup.plan, step) for step in range(6)
    ]


def test_gradients_are_cleared_and_train_mode_is_on_between_steps(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(LORA)
    for _ in train_steps(setup, optimizer, first_step=0):
        assert all(weight.grad is None for _, weight in trained_parameters(setup.model))
        assert setup.model.training
        measure(setup, setup.tokens, range(ROWS), print)
        assert not setup.model.training


@BOTH
def test_loop_resumed_at_a_later_step_is_bit_identical(new_setup: MakeSetup, tuning: dict[str, Any]) -> None:
    setup, optimizer = new_setup(tuning)
    uninterrupted = [(report, all_state(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = new_setup(tuning)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 3))
    torch.manual_seed(77)  # the generator's state must not matter
    torch.rand(5)
    resumed = [(report, all_state(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=3)]
    for (report, state), (other, other_state) in zip(uninterrupted[3:], resumed, strict=True):
        assert report == other
        assert same(state, other_state)


def test_dropout_depends_on_seed_and_step(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(LORA)
    first = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    other, optimizer = new_setup(LORA)
    other = replace(other, recipe=setup.recipe.model_copy(update={"seed": 1}))
    assert [report.loss for report in train_steps(other, optimizer, first_step=0)] != first


@pytest.mark.parametrize("max_tokens", [16, 64, 4096])
def test_measure_is_a_mean_over_tokens_for_any_micro_batch_size(new_setup: MakeSetup, max_tokens: int) -> None:
    setup, _ = new_setup()
    with torch.inference_mode():
        parts = [token_loss(setup.model.eval(), setup.tokens.batch([row], 2)) for row in range(ROWS)]
    nll = torch.cat([part.nll for part in parts])
    progress: list[int] = []
    limited = replace(setup, oom_retry=OomRetry(MicroBatchPolicy(max_tokens, packing="auto")))
    values, trained = measure(limited, setup.tokens, range(ROWS), progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == ROWS
    assert trained == len(nll) == setup.tokens.trained_tokens(range(ROWS))
    assert values["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert values["token_accuracy"] == float(torch.cat([part.correct for part in parts]).double().mean())
