"""Checkpoints are written beside training, and hold what was there when they were due."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.unit.train.conftest import FULL, LORA, Start

from tunesmith.core.errors import DoesNotFit, Interrupted
from tunesmith.train import async_save, loop
from tunesmith.train import train as stage
from tunesmith.train.checkpoint import Snapshot, save_checkpoint


def saving(monkeypatch: pytest.MonkeyPatch, work: Any) -> list[tuple[int, bool, str]]:
    """Call `work` before each save; return (step, whether it is a copy, name of the thread) of each."""
    seen: list[tuple[int, bool, str]] = []

    def save(run: Any, taken: Snapshot, *more: Any) -> None:
        seen.append((taken.state.step, taken.weights is not None, threading.current_thread().name))
        work(taken.state.step)
        save_checkpoint(run, taken, *more)

    monkeypatch.setattr(async_save, "save_checkpoint", save)
    return seen


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_training_goes_on_and_the_checkpoint_is_of_its_step(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch, tuning: dict[str, Any]
) -> None:
    made, undisturbed = (
        start(tuning, valid_every_steps=6, keep_checkpoints=9),
        whole(tuning, valid_every_steps=6, keep_checkpoints=9),
    )
    ahead = threading.Event()

    def until_two_steps_later(step: int) -> None:
        if step == 2:  # else the next save waits for this one, and this one for the step
            assert ahead.wait(60)

    real = made.run.metrics
    watched = threading.Thread(target=_tell_when, args=(real, b'"step": 3', ahead), daemon=True)
    seen = saving(monkeypatch, until_two_steps_later)
    watched.start()
    made.go()
    assert [(step, copied) for step, copied, _ in seen] == [(2, True), (4, True), (6, True)]
    assert all(name.startswith("saver") for *_, name in seen)
    for step in (2, 4, 6):
        assert made.result(step) == undisturbed.result(step)


def _tell_when(path: Path, said: bytes, event: threading.Event) -> None:
    while not (path.exists() and said in path.read_bytes()):
        threading.Event().wait(0.01)
    event.set()


def test_where_a_copy_has_no_room_training_waits(start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_save, "available_memory_gib", lambda: 0.0)
    made = start()
    done: list[int] = []
    seen = saving(monkeypatch, lambda step: done.append(made.run.metrics.read_bytes().count(b'"kind": "step"') - step))
    made.go()
    assert [(step, copied) for step, copied, _ in seen] == [(2, False), (4, False), (6, False)]
    assert done == [0, 0, 0], "no step is taken while it is written"
    assert made.result(6) == whole().result(6)


def test_what_goes_wrong_ends_training_at_the_next_step_and_keeps_what_is_whole(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(save_every_steps=1, keep_checkpoints=9)

    def full(step: int) -> None:
        if step == 3:
            raise DoesNotFit("the disk is full")

    with monkeypatch.context() as patch:
        saving(patch, full)
        with pytest.raises(DoesNotFit, match="the disk is full"):
            made.go()
    assert made.steps == [1, 2]
    made.go()
    assert made.steps == [1, 2, 3, 4, 5, 6]


def test_a_last_save_that_fails_is_told_though_a_signal_ends_the_run(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(save_every_steps=6, valid_every_steps=6)

    def full(step: int) -> None:
        raise DoesNotFit("the disk is full")

    saving(monkeypatch, full)
    real = loop.train_steps

    def signalled(*given: Any, **more: Any) -> Any:
        yield from itertools.islice(real(*given, **more), 3)
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(stage, "train_steps", signalled)
    with pytest.raises(DoesNotFit, match="the disk is full"):
        made.go()
