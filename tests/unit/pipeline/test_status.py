"""How a run does is told from its files and its jobs, and looking changes nothing."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith import load_recipe
from tunesmith.core.errors import Interrupted, TunesmithError
from tunesmith.core.files import write_json, write_text
from tunesmith.core.jsonl import json_line
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.status import status_of
from tunesmith.pipeline.watch import watch_run
from tunesmith.recipe.load import dump_recipe
from tunesmith.slurm import client
from tunesmith.slurm.client import JobState
from tunesmith.slurm.jobs import StageJob, exit_code_path, write_jobs

JOBS = {"prepare": "7", "train": "8", "evaluate": "9", "promote": "10"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of which only the recipe is there."""
    changes = {"train": {"learning_rate": 0.1, "max_steps": 40, "examples_per_step": 4, "epochs": 9}}
    file = recipe(tmp_path, tmp_path / "model", promote={"model": "x"}, **changes)
    made = RunDir(tmp_path / "run")
    for folder in (made.path / "logs", made.launch, made.stage("prepare"), made.stage("train"), made.stage("evaluate")):
        folder.mkdir(parents=True)
    write_text(made.resolved_recipe, dump_recipe(load_recipe(file)))
    return made


def finish(run: RunDir, *stages: str) -> None:
    for stage in stages:
        write_json(run.stage(stage) / "manifest.json", {"inputs": {}, "counts": {"train": 32, "valid": 4, "test": 6}})


def steps(run: RunDir, count: int) -> None:
    lines = [{"kind": "step", "step": n + 1, "loss": 2.5, "tokens": 300, "seconds": 2.0} for n in range(count)]
    write_text(run.metrics, "".join(map(json_line, lines)))


def states(run: RunDir) -> dict[str, str]:
    return {one.stage: str(one) for one in status_of(run).stages}


def in_line(run: RunDir, monkeypatch: pytest.MonkeyPatch, **found: JobState) -> None:
    """Give a run its jobs, of which Slurm says so much."""
    write_jobs(run.launch, [StageJob(stage, job, f"tiny-{stage}") for stage, job in JOBS.items()])
    by_name = {f"tiny-{stage}": state for stage, state in found.items()}
    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", lambda job, name: by_name.get(name, JobState(client.GONE)))
    monkeypatch.setattr(client, "is_available", lambda: True)


def test_a_run_that_was_not_begun(run: RunDir) -> None:
    assert states(run) == dict.fromkeys(JOBS, "to do")
    assert not status_of(run).is_active


def test_a_run_that_works_here(run: RunDir) -> None:
    finish(run, "prepare")
    steps(run, 10)
    with exclusive_lock(run.lock):
        found = status_of(run)
        assert found.is_active
        assert str(found).splitlines()[0].endswith(" works at it)")
        assert str(found.stages[1]) == "working  step 10 of 40  loss 2.5000, 150 tokens/s  1m 00s left"
    assert states(run)["train"] == "to do  step 10 of 40"


def test_a_line_that_is_being_written_is_left_alone(run: RunDir) -> None:
    finish(run, "prepare")
    steps(run, 3)
    with run.metrics.open("a", encoding="utf-8") as log:
        log.write('{"kind": "step", "st')
    before = run.metrics.read_bytes()
    assert states(run)["train"] == "to do  step 3 of 40"
    assert run.metrics.read_bytes() == before


def test_jobs_that_run_and_wait(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    steps(run, 10)
    ends = datetime.now() + timedelta(seconds=600.4)
    waits = JobState("PENDING", "Dependency")
    works = JobState("RUNNING", "", "node[1-2]", "00:05:00", ends, 1)
    in_line(run, monkeypatch, train=works, evaluate=waits, promote=waits)
    found = states(run)
    assert found["prepare"] == "done"
    assert found["train"].startswith("working, job 8  on node[1-2] for 00:05:00  started again 1 x  step 10 of 40")
    assert found["train"].endswith("1m 00s left  10m 00s to the time limit")
    assert found["evaluate"] == "waiting, job 9  (Dependency)"
    assert json.loads(json.dumps(status_of(run).to_json()))["stages"][1]["done_of"] == [10, 40]


def test_answers_are_counted_of_all_processes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare", "train")
    for name, lines in (("base/generations.jsonl", 3), ("base/generations-1.jsonl", 2), ("tuned/generations.jsonl", 1)):
        path = run.stage("evaluate") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n" * lines)
    in_line(run, monkeypatch, evaluate=JobState("RUNNING", "", "node1", "00:01:00"))
    assert states(run)["evaluate"] == "working, job 9  on node1 for 00:01:00  answer 6 of 12"


@pytest.mark.parametrize(
    ("state", "code", "told", "ends_with"),
    [
        ("FAILED", 7, "failed with 7, job 8", 7), ("FAILED", 75, "stopped with 75, job 8", 75),
        ("CANCELLED", 75, "cancelled, job 8", 75), ("TIMEOUT", None, "stopped, job 8", 75),
        ("OUT_OF_MEMORY", 137, "failed with 137, job 8", 137), ("FAILED", None, "failed, job 8", 1),
        (client.GONE, 3, "failed with 3, job 8", 3), (client.GONE, None, "failed, job 8", 1),
    ],
)  # fmt: skip
def test_jobs_that_ended_badly(
    state: str, code: int | None, told: str, ends_with: int, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(run, "prepare")
    found = JobState(state, exit_code=None if state == client.GONE else code)
    in_line(run, monkeypatch, train=found, evaluate=JobState("CANCELLED"), promote=JobState("CANCELLED"))
    if state == client.GONE and code is not None:
        exit_code_path(run, "train").write_text(f"{code}\n")
    assert states(run)["train"] == told
    with pytest.raises(TunesmithError) as error:
        watch_run(run, every=0)
    assert error.value.exit_code == ends_with
    assert isinstance(error.value, Interrupted) == (ends_with == 75)
    assert "train" in error.value.message


def test_the_error_is_shown_and_not_what_srun_makes_of_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    in_line(run, monkeypatch, train=JobState("FAILED", exit_code=7))
    log = "train: starts\nerror: step 3: the loss became nan\n  hint: lower it\nsrun: error: node1: task 0: Exited\n"
    (run.path / "logs" / "train-8.log").write_text(log)
    assert status_of(run).last_lines == ("error: step 3: the loss became nan", "  hint: lower it")


def test_a_run_whose_jobs_slurm_has_forgotten(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare", "train", "evaluate", "promote")
    in_line(run, monkeypatch)
    assert states(run) == dict.fromkeys(JOBS, "done")
    watch_run(run, every=0)


def test_changes_are_told_once(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run, "prepare", "evaluate", "promote")
    write_jobs(run.launch, [StageJob("train", "8", "tiny-train")])
    monkeypatch.setattr(client, "is_available", lambda: True)
    turns = iter(["PENDING", "PENDING", "RUNNING", "RUNNING", "RUNNING", "COMPLETED"])

    def state_of(job: str, name: str) -> JobState:
        state = next(turns)
        if state == "COMPLETED":
            finish(run, "train")  # between what was read of the files and what Slurm says
        return JobState(state)

    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", state_of)
    watch_run(run, every=0)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train")]
    assert told == ["train: waiting, job 8", "train: working, job 8", "train: done"]


def test_a_job_that_completed_is_done_before_its_files_are_seen(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    done = JobState("COMPLETED", exit_code=0)
    in_line(run, monkeypatch, prepare=done, train=done, evaluate=done, promote=done)
    assert states(run) == dict.fromkeys(JOBS, "done")


def test_after_a_failed_job_it_may_work_here(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    in_line(run, monkeypatch, train=JobState("FAILED", exit_code=7))
    with exclusive_lock(run.lock):
        assert states(run)["train"] == "working, job 8"


def test_without_slurm_the_files_tell_what_they_know(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    in_line(run, monkeypatch, train=JobState("RUNNING"))
    monkeypatch.setattr(client, "is_available", lambda: False)
    assert states(run)["train"] == "unknown, job 8"
    finish(run, "train")
    assert states(run)["train"] == "done"


def test_watching_outlives_a_controller_that_is_busy(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run, "prepare", "train", "evaluate", "promote")
    write_jobs(run.launch, [StageJob("train", "8", "tiny-train")])
    monkeypatch.setattr(client, "is_available", lambda: True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers = iter([TunesmithError("Slurm does not answer"), JobState("COMPLETED")])

    def state_of(job: str, name: str) -> JobState:
        found = next(answers)
        if isinstance(found, TunesmithError):
            raise found
        return found

    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", state_of)
    watch_run(run, every=0)
    assert "asking again: Slurm does not answer" in capsys.readouterr().err
