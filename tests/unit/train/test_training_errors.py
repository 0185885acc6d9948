"""A training that fails says why, and keeps its log and checkpoints."""

import itertools
import math
import os
import resource
from dataclasses import replace
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tokens import write_examples
from tests.unit.train.conftest import (
    BOTH,
    Job,
    MakeJob,
    assert_same_result,
    random_rows,
    scripted,
)

from tunesmith.core.errors import DoesNotFit, NonFinite, RecipeError
from tunesmith.train import loop
from tunesmith.train import train as stage


@BOTH
def test_full_disk_during_a_save_is_reported_and_training_resumes(
    new_job: MakeJob, finished_job: MakeJob, tuning: dict[str, Any]
) -> None:
    job = new_job(tuning)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        with pytest.raises(DoesNotFit) as caught:
            job.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 5
    assert job.steps == []
    assert [path.name for path in job.run.checkpoints.iterdir()] == []
    job.train()
    assert_same_result(finished_job(tuning), job)


def test_full_disk_while_logging_is_reported_and_training_resumes(new_job: MakeJob, finished_job: MakeJob) -> None:
    job = new_job()
    log_line = stage.TrainingRun.log_line
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Any, file: Any, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.tell() + 20, limits[1]))
        log_line(self, file, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.TrainingRun, "log_line", limited)
        try:
            with pytest.raises(DoesNotFit):
                job.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not job.run.metrics.read_bytes().endswith(b"\n")
    job.train()
    assert_same_result(finished_job(), job)


def test_full_disk_during_a_resume_keeps_the_log(stopped: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stopped.run.metrics.read_bytes()

    def disk_full(file: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(DoesNotFit):
        stopped.train()
    assert stopped.run.metrics.read_bytes() == before


def test_non_finite_loss_keeps_the_saved_checkpoints(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job()
    original, calls = loop.accumulate_gradients, itertools.count(1)
    monkeypatch.setattr(
        loop, "accumulate_gradients", lambda *given: original(*given) * (math.nan if next(calls) == 4 else 1)
    )
    with pytest.raises(NonFinite) as caught:
        job.train()
    assert caught.value.exit_code == 7
    assert job.steps == [2]
    assert [line["step"] for line in job.log() if line["kind"] == "step"] == [1, 2, 3]
    monkeypatch.undo()
    job.train()  # resumes once the cause is gone


@pytest.mark.parametrize("at", [0, 4])
def test_non_finite_validation_loss_ends_training(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    scripted(monkeypatch, {step: math.nan if step == at else 1.0 for step in (0, 2, 4)})
    job = new_job()
    with raises(NonFinite, "non-finite", "validation loss", "nan"):
        job.train()
    assert job.steps == ([2] if at else [])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_rows_longer_than_the_model_reads_are_refused_before_training(new_job: MakeJob, split: str) -> None:
    job = new_job()
    row = random_rows(1, 5)[0]
    long = replace(row, input_ids=row.input_ids[:1] * 513, trained=(False,) + (True,) * 512)
    write_examples(job.run.tokens(split), [row, long])
    with raises(RecipeError, "too-many-tokens", 513, 512):
        job.train()
    assert job.steps == []
    just = replace(row, input_ids=row.input_ids[:1] * 512, trained=(False,) + (True,) * 511)
    write_examples(job.run.tokens(split), [row, just] * 3)
    job.train()
