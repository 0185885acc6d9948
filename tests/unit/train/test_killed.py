"""A killed run resumes to the same result as one that was not killed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.train.conftest import FULL, LORA, WITH_ANSWERS, MakeJob, assert_same_result, copied

from tunesmith.core.files import check_folder
from tunesmith.train import async_save, checkpoint

DORA = {**LORA, "dora": True, "rslora": True}
NF4, INT8 = ({**LORA, "method": "qlora", "bits": bits} for bits in (4, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "steps", "settings"),
    [(LORA, (0, 2, 5), {}), (FULL, (3,), {}), (DORA, (3,), {}), (NF4, (3,), {}), (INT8, (3,), {}),
     (LORA, (0, 3, 4), WITH_ANSWERS),
     pytest.param(LORA, (1, 3, 4), {}, marks=pytest.mark.slow),
     pytest.param(FULL, (0, 1, 2, 4, 5), WITH_ANSWERS, marks=pytest.mark.slow)],
)  # fmt: skip
def test_run_killed_after_any_step_resumes_to_the_same_result(
    finished_job: MakeJob, tmp_path: Path, tuning: dict[str, Any], steps: tuple[int, ...], settings: dict[str, Any]
) -> None:
    uninterrupted = finished_job(tuning, save_every_steps=1, keep_checkpoints=9, **settings)
    assert uninterrupted.steps == [1, 2, 3, 4, 5, 6]
    for step in steps:
        killed = copied(uninterrupted, tmp_path / f"killed-{step}")
        (killed.run.stage("train") / "manifest.json").unlink()
        for later in range(step + 1, 7):
            shutil.rmtree(killed.run.checkpoint(later))
        with killed.run.metrics.open("a") as log:  # the log was ahead of the checkpoint, its last line half written
            log.write('{"kind": "step", "st')
        leftover = killed.run.checkpoints / ".step-000004.tmp-0a1b2c3d"
        leftover.mkdir()
        killed.train()
        assert_same_result(uninterrupted, killed)
        assert not leftover.exists()


class Killed(BaseException):
    """Simulates a kill: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["model", "optimizer", "state", "rename", "prune"])
def test_run_killed_during_a_save_resumes_from_the_checkpoint_before(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    killed = new_job()
    functions = {
        "model": (checkpoint, "save_model"),
        "optimizer": (checkpoint, "save_file"),
        "state": (checkpoint, "write_json"),
        "rename": (Path, "rename"),
        "prune": (async_save, "prune"),
    }
    module, name = functions[at]
    original, calls = getattr(module, name), []

    def dying(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == (3 if at == "state" else 2):  # in the second checkpoint; the card is the third JSON file
            raise Killed
        return original(*args, **given)

    monkeypatch.setattr(module, name, dying)
    with pytest.raises(Killed):
        killed.train()
    monkeypatch.undo()
    assert all(check_folder(killed.run.checkpoint(step)) for step in killed.steps)
    killed.train()
    assert_same_result(finished_job(), killed)
