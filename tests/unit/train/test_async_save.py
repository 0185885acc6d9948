"""Checkpoints are written while training continues, and hold the state of the step at which they were due."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.unit.train.conftest import BOTH, MakeJob

from tunesmith.core.errors import DoesNotFit, Interrupted
from tunesmith.train import async_save, loop
from tunesmith.train import train as stage
from tunesmith.train.checkpoint import Snapshot, save_checkpoint


def record_saves(monkeypatch: pytest.MonkeyPatch, work: Any) -> list[tuple[int, bool, str]]:
    """Call `work` before each save; return (step, whether it is a copy, name of the thread) of each save."""
    saves: list[tuple[int, bool, str]] = []

    def save(run: Any, snapshot: Snapshot, *more: Any) -> None:
        saves.append((snapshot.state.step, snapshot.weights is not None, threading.current_thread().name))
        work(snapshot.state.step)
        save_checkpoint(run, snapshot, *more)

    monkeypatch.setattr(async_save, "save_checkpoint", save)
    return saves


@BOTH
def test_async_save_holds_the_state_of_its_step_while_training_continues(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tuning: dict[str, Any]
) -> None:
    job, undisturbed = (
        new_job(tuning, valid_every_steps=6, keep_checkpoints=9),
        finished_job(tuning, valid_every_steps=6, keep_checkpoints=9),
    )
    third_step = threading.Event()

    def wait_for_the_third_step(step: int) -> None:
        if step == 2:  # a later save would wait for this one, and this one for the step
            assert third_step.wait(60)

    metrics = job.run.metrics
    watcher = threading.Thread(target=_set_when, args=(metrics, b'"step": 3', third_step), daemon=True)
    saves = record_saves(monkeypatch, wait_for_the_third_step)
    watcher.start()
    job.train()
    assert [(step, copied) for step, copied, _ in saves] == [(2, True), (4, True), (6, True)]
    assert all(name.startswith("saver") for *_, name in saves)
    for step in (2, 4, 6):
        assert job.result(step) == undisturbed.result(step)


def _set_when(path: Path, text: bytes, event: threading.Event) -> None:
    while not (path.exists() and text in path.read_bytes()):
        threading.Event().wait(0.01)
    event.set()


def test_save_blocks_training_without_memory_for_a_copy(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_save, "available_memory_gib", lambda: 0.0)
    job = new_job()
    steps_ahead: list[int] = []
    saves = record_saves(
        monkeypatch, lambda step: steps_ahead.append(job.run.metrics.read_bytes().count(b'"kind": "step"') - step)
    )
    job.train()
    assert [(step, copied) for step, copied, _ in saves] == [(2, False), (4, False), (6, False)]
    assert steps_ahead == [0, 0, 0], "no step is taken during a save"
    assert job.result(6) == finished_job().result(6)


def test_failed_async_save_ends_training_at_the_next_step(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(save_every_steps=1, keep_checkpoints=9)

    def disk_full(step: int) -> None:
        if step == 3:
            raise DoesNotFit("the disk is full")

    with monkeypatch.context() as patch:
        record_saves(patch, disk_full)
        with raises(DoesNotFit, "does-not-fit"):
            job.train()
    assert job.steps == [1, 2]
    job.train()
    assert job.steps == [1, 2, 3, 4, 5, 6]


def test_failed_last_save_is_reported_instead_of_the_signal(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(save_every_steps=6, valid_every_steps=6)

    def disk_full(step: int) -> None:
        raise DoesNotFit("the disk is full")

    record_saves(monkeypatch, disk_full)
    real = loop.train_steps

    def signalled(*given: Any, **more: Any) -> Any:
        yield from itertools.islice(real(*given, **more), 3)
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(stage, "train_steps", signalled)
    with raises(DoesNotFit, "does-not-fit"):
        job.train()
