"""Training stops early by the metric that selects the best step, and a resumed run stops at the same step."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.train.conftest import MakeJob, assert_same_result, copied, scripted, signal_at

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted
from tunesmith.recipe.training import StopEarly, Train
from tunesmith.train import validate
from tunesmith.train.checkpoint import State
from tunesmith.train.stop_early import count_validation, stop_reason

LOSSES = {0: 9.0, 1: 5.0, 2: 3.0, 3: 3.5, 4: 3.0, 5: 1.0, 6: 0.5}
AFTER_TWO: dict[str, Any] = {"valid_every_steps": 1, "save_every_steps": 3, "stop_early": {"after_validations": 2}}


def counts(values: list[float | None], *, higher: bool, min_change: float = 0.0) -> list[int]:
    """Return the number of validations without an improvement after each value."""
    state, counted = State(0, ""), []
    for value in values:
        stop = StopEarly(after_validations=2, min_change=min_change)
        state = count_validation(state, stop, value, higher=higher)
        counted.append(state.without_improvement)
    return counted


def test_improvements_have_the_direction_of_the_metric() -> None:
    values: list[float | None] = [3.0, 2.0, 2.0, 4.0]
    assert counts(values, higher=False) == [0, 0, 1, 2]
    assert counts(values, higher=True) == [0, 1, 2, 0]


def test_an_improvement_exceeds_min_change_since_the_last_one() -> None:
    assert counts([3.0, 2.9, 2.8, 2.45, 2.0], higher=False, min_change=0.5) == [0, 1, 2, 0, 1]
    assert counts([0.25, 0.5, 0.75], higher=True, min_change=0.25) == [0, 1, 0]


def test_values_that_are_missing_do_not_count_and_nan_is_no_improvement() -> None:
    assert counts([3.0, None, float("nan"), None], higher=False) == [0, 0, 1, 1]
    assert counts([None, float("nan"), 3.0], higher=False) == [0, 1, 0]


def test_without_the_key_nothing_is_counted_and_training_goes_on() -> None:
    state = State(1, "")
    assert count_validation(state, None, 3.0, higher=False) is state
    assert stop_reason(Train(learning_rate=1e-4), State(1, "", without_improvement=99)) is None


def test_training_stops_and_keeps_the_best_step(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, LOSSES)
    job, whole = new_job(**AFTER_TWO), new_job(name="whole", valid_every_steps=1)
    manifest = job.train()
    assert (manifest["steps"], manifest["best_step"], manifest["best_value"]) == (4, 2, 3.0)
    assert "2 validations" in manifest["stopped_early"]
    assert job.steps == [2, 3, 4]
    assert [line["step"] for line in job.log() if line["kind"] == "valid"] == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    assert whole.train()["stopped_early"] is None
    # The learning rates are those of all six steps.
    rates = [[line["learning_rate"] for line in one.log() if line["kind"] == "step"] for one in (job, whole)]
    assert rates[0] == rates[1][:4]


def test_training_that_takes_all_steps_did_not_stop_early(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {0: 9.0, 1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0, 5: 2.0, 6: 2.0})
    manifest = new_job(**AFTER_TWO).train()
    assert (manifest["steps"], manifest["best_step"], manifest["stopped_early"]) == (6, 4, None)


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 4])
def test_a_killed_run_stops_at_the_same_step(
    new_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    settings = {**AFTER_TWO, "save_every_steps": 1, "keep_checkpoints": 9}
    scripted(monkeypatch, LOSSES)
    whole = new_job(**settings)
    whole.train()
    killed = copied(whole, tmp_path / "killed")
    (killed.run.stage("train") / "manifest.json").unlink()
    for later in range(killed_at + 1, 5):
        shutil.rmtree(killed.run.checkpoint(later))
    scripted(monkeypatch, {step: LOSSES[step] for step in range(killed_at + (killed_at > 0), 7)})
    killed.train()
    assert_same_result(whole, killed)


def test_a_signal_during_the_deciding_validation_does_not_lose_it(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(**AFTER_TWO)
    scripted(monkeypatch, LOSSES)
    signal_at(monkeypatch, validate, "measure", 5)  # at step 4
    original = validate.measure

    def interruptible(*args: Any) -> Any:
        measured = original(*args)
        interrupt.check()
        return measured

    monkeypatch.setattr(validate, "measure", interruptible)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        job.train()
    assert job.steps[-1] == 4
    scripted(monkeypatch, {4: 3.0, 5: 1.0, 6: 0.5})
    assert job.train()["steps"] == 4
