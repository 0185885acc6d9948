"""A run that is stopped by a signal loses no finished step, and resumes to the same result."""

import signal
from typing import Any

import pytest
from tests.unit.train.conftest import BOTH, WITH_ANSWERS, MakeJob, signal_at

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted
from tunesmith.core.files import check_folder, read_json
from tunesmith.train import checkpoint, loop, validate


@BOTH
def test_signal_during_a_step_saves_the_step_before(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tuning: dict[str, Any]
) -> None:
    settings = {"micro_batch": 1, "valid_every_steps": 6, "save_every_steps": 6}
    uninterrupted, stopped = finished_job(tuning, **settings), new_job(tuning, **settings)
    # Each step has four micro-batches; the first validation has some too.
    steps: list[int] = []
    accumulate = loop.accumulate_gradients
    monkeypatch.setattr(loop, "accumulate_gradients", lambda *args: (steps.append(1), accumulate(*args))[1])
    token_loss, calls = loop.token_loss, []

    def signalling(*args: Any) -> Any:
        calls.append(len(steps))
        if calls.count(4) == 2:  # the second micro-batch of the fourth step
            signal.raise_signal(signal.SIGTERM)
        return token_loss(*args)

    monkeypatch.setattr(loop, "token_loss", signalling)
    with interrupt.catch_signals(), pytest.raises(Interrupted) as caught:
        stopped.train()
    assert caught.value.exit_code == 75
    assert calls.count(4) == 2
    assert stopped.steps == [3]
    assert not (stopped.run.stage("train") / "manifest.json").exists()
    monkeypatch.undo()
    stopped.train()
    assert uninterrupted.steps == [6]
    assert uninterrupted.result(6) == stopped.result(6)
    assert uninterrupted.log() == stopped.log()


@pytest.mark.slow
@pytest.mark.parametrize("validation", [1, 2, 3, 4])
@pytest.mark.parametrize("in_work", ["measure", "predict"])
def test_signal_during_validation_loses_neither_step_nor_validation(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch, validation: int, in_work: str
) -> None:
    settings = {"keep_checkpoints": 9, **(WITH_ANSWERS if in_work == "predict" else {})}
    uninterrupted, stopped = finished_job(**settings), new_job(**settings)
    signal_at(monkeypatch, validate, in_work, validation)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        stopped.train()
    step = 2 * (validation - 1)
    assert stopped.steps == [kept for kept in (2, 4, 6) if kept <= step]
    assert [line["step"] for line in stopped.log() if line["kind"] == "valid"] == list(range(0, step, 2))
    assert sorted(stopped.answers()) == (list(range(0, step, 2)) if in_work == "predict" else [])
    monkeypatch.undo()
    # Once more, so that the repeated validation is interrupted too.
    signal_at(monkeypatch, validate, in_work, 1)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        stopped.train()
    monkeypatch.undo()
    stopped.train()
    assert uninterrupted.log() == stopped.log()
    assert uninterrupted.answers() == stopped.answers()
    manifests = [read_json(one.run.stage("train") / "manifest.json") for one in (uninterrupted, stopped)]
    assert manifests[0]["best_step"] == manifests[1]["best_step"]
    assert manifests[0]["best_value"] == manifests[1]["best_value"]
    name = "model/adapter_model.safetensors"
    assert stopped.result(6)[name] == uninterrupted.result(6)[name]


def test_signal_during_a_save_waits_for_the_save(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job()
    signal_at(monkeypatch, checkpoint, "save_model", 1)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        job.train()
    assert job.steps == [2]
    check_folder(job.run.checkpoint(2))
