"""Submitting a run: what is fetched first, and which jobs are watched."""

from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import write_json
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.launcher import launch_run
from tunesmith.pipeline.runner import run_recipe
from tunesmith.pipeline.runs import open_run
from tunesmith.pipeline.submit import cancel_run, fetch_inputs, refuse_if_queued
from tunesmith.recipe.load import load_recipe
from tunesmith.slurm import client
from tunesmith.slurm.client import JobState
from tunesmith.slurm.jobs import StageJob, exit_code_path, read_jobs, write_jobs


def test_rows_on_the_hub_are_not_fetched_after_prepare(tmp_path: Path, tokenizer_folder: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, tokenizer_folder), ["data.source={hub: nobody/has-it}"])
    run = RunDir(tmp_path / "run", recipe_folder=tmp_path)
    with pytest.raises(DataError) as error:
        fetch_inputs(loaded, run)
    assert "nobody/has-it" in str(error.value)
    write_json(run.stage("prepare") / "manifest.json", {})
    fetch_inputs(loaded, run)


def test_jobs_of_an_earlier_command_are_not_watched(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path, tokenizer_folder)
    run = run_recipe(file, out=tmp_path / "run", until="prepare")
    write_jobs(run.launch, [StageJob("train", "5", "tiny")])
    exit_code_path(run, "train").write_text("75\n", encoding="utf-8")  # it was stopped
    monkeypatch.setattr(client, "require_slurm", lambda: None)
    monkeypatch.setattr(client, "is_available", lambda: False)
    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", lambda *_: JobState(client.GONE))
    opened = open_run(file, ["launch={on: slurm}"], run.path)
    done = launch_run(opened, until="prepare", here=False, detach=False)
    assert done is not None
    assert done.path == run.path
    assert [job.job for job in read_jobs(run.launch)] == ["5"]


def test_cancel_and_submit_refuse_by_the_states_of_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    with raises(RecipeError, "not-queued", where=str(run)):
        cancel_run(run)
    write_jobs(run.launch, [StageJob("train", "5", "tiny")])
    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", lambda *_: JobState("COMPLETED"))
    refuse_if_queued(read_jobs(run.launch), str(run))
    with raises(RecipeError, "not-queued", where=str(run)):
        cancel_run(run)
    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", lambda *_: JobState("PENDING"))
    with raises(RecipeError, "already-queued", "train (job 5)", where=str(run)):
        refuse_if_queued(read_jobs(run.launch), str(run))
