"""If memory runs out, micro-batches are halved and the steps stay the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.unit.train.conftest import MakeSetup, weights

from tunesmith.core.errors import DoesNotFit
from tunesmith.estimate.memory import MemoryEstimate
from tunesmith.train.loop import Setup, measure, train_steps


def limit_memory(setup: Setup, rows: int, from_pass: int) -> list[int]:
    """Let passes with more rows fail from one pass on; return the list to which each pass adds its number of rows."""
    passes: list[int] = []

    def check(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append(given["input_ids"].shape[0])
        if len(passes) >= from_pass and passes[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    setup.model.register_forward_pre_hook(check, with_kwargs=True)
    return passes


def test_oom_halves_the_micro_batches_and_keeps_the_steps(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(micro_batch=4, packing="never")
    expected, final = list(train_steps(setup, optimizer, first_step=0)), weights(setup.model)
    setup, optimizer = new_setup(micro_batch=4, packing="never")
    passes = limit_memory(setup, 2, from_pass=4)  # in the second half of step 2, after the first half left gradients
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert passes == [4, 4, 4, 4] + [2] * 20
    for report, other in zip(expected, reports, strict=True):
        assert other.loss == pytest.approx(report.loss, rel=1e-6)
        assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-5)
        assert (other.tokens, other.trained_tokens) == (report.tokens, report.trained_tokens)
    torch.testing.assert_close(weights(setup.model), final, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("resident", "trims"), [(0.95, 1), (1.05, 6)])
def test_heap_is_trimmed_after_steps_if_resident_memory_exceeds_the_unfragmented_peak(
    new_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, resident: float, trims: int
) -> None:
    setup, optimizer = new_setup()
    calls = []
    monkeypatch.setattr("tunesmith.train.loop.resident_gib", lambda: resident)
    monkeypatch.setattr("tunesmith.train.loop.trim_heap", lambda: calls.append(1))
    expected = MemoryEstimate(1.0, 0, 0, 0, 0, 0.3, 0, 0, 0, 0)
    assert expected.total == 1.3
    assert len(list(train_steps(replace(setup, expected=expected), optimizer, first_step=0))) == 6
    assert len(calls) == trims


def test_oom_for_a_single_row_ends_the_run(new_setup: MakeSetup) -> None:
    setup, optimizer = new_setup(packing="never")
    passes = limit_memory(setup, 0, from_pass=1)
    with raises(DoesNotFit, "out-of-memory", "single row"):
        next(train_steps(setup, optimizer, first_step=0))
    assert passes[-1] == 1
    assert len(passes) < 6


def test_oom_in_validation_halves_the_micro_batches(new_setup: MakeSetup) -> None:
    setup, _ = new_setup(packing="never")
    expected, trained = measure(setup, setup.tokens, range(len(setup.tokens)), print)
    passes = limit_memory(setup, 3, from_pass=1)
    measured = measure(setup, setup.tokens, range(len(setup.tokens)), print)
    assert measured[0]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert measured[1] == trained
    assert max(passes[-5:]) <= 3
