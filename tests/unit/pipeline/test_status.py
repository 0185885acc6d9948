"""The status of a run follows from its files and its jobs; reading it changes nothing."""

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
    """A run with nothing but a recipe."""
    changes = {"train": {"learning_rate": 0.1, "max_steps": 40, "examples_per_step": 4, "epochs": 9}}
    file = recipe(tmp_path, tmp_path / "model", promote={"model": "x"}, **changes)
    run = RunDir(tmp_path / "run")
    for folder in (run.path / "logs", run.launch, run.stage("prepare"), run.stage("train"), run.stage("evaluate")):
        folder.mkdir(parents=True)
    write_text(run.resolved_recipe, dump_recipe(load_recipe(file)))
    return run


def finish(run: RunDir, *stages: str) -> None:
    """Write the manifests of stages."""
    for stage in stages:
        write_json(run.stage(stage) / "manifest.json", {"inputs": {}, "counts": {"train": 32, "valid": 4, "test": 6}})


def write_steps(run: RunDir, count: int) -> None:
    """Write the metrics of a training of `count` steps of 2 seconds and 300 tokens."""
    lines = [{"kind": "step", "step": n + 1, "loss": 2.5, "tokens": 300, "seconds": 2.0} for n in range(count)]
    write_text(run.metrics, "".join(map(json_line, lines)))


def stage_texts(run: RunDir) -> dict[str, str]:
    """Return the status of each stage as text."""
    return {stage.stage: str(stage) for stage in status_of(run).stages}


def submit(run: RunDir, monkeypatch: pytest.MonkeyPatch, **states: JobState) -> None:
    """Record a job for each stage, and let Slurm know the states of these."""
    write_jobs(run.launch, [StageJob(stage, job, f"tiny-{stage}") for stage, job in JOBS.items()])
    by_name = {f"tiny-{stage}": state for stage, state in states.items()}
    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", lambda job, name: by_name.get(name, JobState(client.GONE)))
    monkeypatch.setattr(client, "is_available", lambda: True)


def test_status_before_the_start(run: RunDir) -> None:
    assert stage_texts(run) == dict.fromkeys(JOBS, "to do")
    assert not status_of(run).is_active


def test_status_of_a_run_on_this_machine(run: RunDir) -> None:
    finish(run, "prepare")
    write_steps(run, 10)
    with exclusive_lock(run.lock):
        status = status_of(run)
        assert status.is_active
        assert status.writer is not None
        assert status.writer in str(status)
        assert str(status.stages[1]) == "working  step 10 of 40  loss 2.5000, 150 tokens/s  1m 00s left"
    assert stage_texts(run)["train"] == "to do  step 10 of 40"


def test_status_says_why_training_stopped_early(run: RunDir) -> None:
    finish(run, "prepare")
    write_steps(run, 10)
    write_json(run.stage("train") / "manifest.json", {"inputs": {}, "stopped_early": "loss has not improved"})
    assert stage_texts(run)["train"] == "done  (stopped early at 10 of 40: loss has not improved)"


def test_half_written_line_is_ignored_and_kept(run: RunDir) -> None:
    finish(run, "prepare")
    write_steps(run, 3)
    with run.metrics.open("a", encoding="utf-8") as log:
        log.write('{"kind": "step", "st')
    before = run.metrics.read_bytes()
    assert stage_texts(run)["train"] == "to do  step 3 of 40"
    assert run.metrics.read_bytes() == before


def test_status_of_running_and_waiting_jobs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    write_steps(run, 10)
    end_time = datetime.now() + timedelta(seconds=600.4)
    pending = JobState("PENDING", "Dependency")
    running = JobState("RUNNING", "", "node[1-2]", "00:05:00", end_time, 1)
    submit(run, monkeypatch, train=running, evaluate=pending, promote=pending)
    texts = stage_texts(run)
    assert texts["prepare"] == "done"
    assert texts["train"].startswith("working, job 8  on node[1-2] for 00:05:00  requeued 1 x  step 10 of 40")
    assert texts["train"].endswith("1m 00s left  10m 00s to the time limit")
    assert texts["evaluate"] == "waiting, job 9  (Dependency)"
    assert json.loads(json.dumps(status_of(run).to_json()))["stages"][1]["done_of"] == [10, 40]


def test_answers_of_all_ranks_are_counted(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare", "train")
    for name, lines in (("base/generations.jsonl", 3), ("base/generations-1.jsonl", 2), ("tuned/generations.jsonl", 1)):
        path = run.stage("evaluate") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n" * lines)
    submit(run, monkeypatch, evaluate=JobState("RUNNING", "", "node1", "00:01:00"))
    assert stage_texts(run)["evaluate"] == "working, job 9  on node1 for 00:01:00  answer 6 of 12"


@pytest.mark.parametrize(
    ("state", "code", "text", "exit_code"),
    [
        ("FAILED", 7, "failed with 7, job 8", 7), ("FAILED", 75, "stopped with 75, job 8", 75),
        ("CANCELLED", 75, "cancelled, job 8", 75), ("TIMEOUT", None, "stopped, job 8", 75),
        ("OUT_OF_MEMORY", 137, "failed with 137, job 8", 137), ("FAILED", None, "failed, job 8", 1),
        (client.GONE, 3, "failed with 3, job 8", 3), (client.GONE, None, "failed, job 8", 1),
    ],
)  # fmt: skip
def test_status_and_error_of_an_unfinished_job(
    state: str, code: int | None, text: str, exit_code: int, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(run, "prepare")
    ended = JobState(state, exit_code=None if state == client.GONE else code)
    submit(run, monkeypatch, train=ended, evaluate=JobState("CANCELLED"), promote=JobState("CANCELLED"))
    if state == client.GONE and code is not None:
        exit_code_path(run, "train").write_text(f"{code}\n")
    assert stage_texts(run)["train"] == text
    with pytest.raises(TunesmithError) as error:
        watch_run(run, every=0)
    assert error.value.exit_code == exit_code
    assert isinstance(error.value, Interrupted) == (exit_code == 75)
    assert error.value.code == ("interrupted" if exit_code == 75 else "stage-failed")
    assert "train" in error.value.message


def test_status_shows_the_error_without_the_lines_of_srun(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    submit(run, monkeypatch, train=JobState("FAILED", exit_code=7))
    log = "train: starts\nerror: step 3: the loss became nan\n  hint: lower it\nsrun: error: node1: task 0: Exited\n"
    (run.path / "logs" / "train-8.log").write_text(log)
    assert status_of(run).last_lines == ("error: step 3: the loss became nan", "  hint: lower it")


def test_finished_run_whose_jobs_slurm_has_forgotten(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare", "train", "evaluate", "promote")
    submit(run, monkeypatch)
    assert stage_texts(run) == dict.fromkeys(JOBS, "done")
    watch_run(run, every=0)


def test_watch_logs_each_change_once(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run, "prepare", "evaluate", "promote")
    write_jobs(run.launch, [StageJob("train", "8", "tiny-train")])
    monkeypatch.setattr(client, "is_available", lambda: True)
    states = iter(["PENDING", "PENDING", "RUNNING", "RUNNING", "RUNNING", "COMPLETED"])

    def job_state(job: str, name: str) -> JobState:
        state = next(states)
        if state == "COMPLETED":
            finish(run, "train")  # after the status has read the files
        return JobState(state)

    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", job_state)
    watch_run(run, every=0)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train")]
    assert lines == ["train: waiting, job 8", "train: working, job 8", "train: done"]


def test_completed_job_is_done_before_its_manifest_is_visible(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    done = JobState("COMPLETED", exit_code=0)
    submit(run, monkeypatch, prepare=done, train=done, evaluate=done, promote=done)
    assert stage_texts(run) == dict.fromkeys(JOBS, "done")


def test_run_resumed_here_after_a_failed_job_is_working(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run, "prepare")
    submit(run, monkeypatch, train=JobState("FAILED", exit_code=7))
    with exclusive_lock(run.lock):
        assert stage_texts(run)["train"] == "working, job 8"


def test_status_without_slurm_is_unknown_until_the_manifest_exists(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(run, "prepare")
    submit(run, monkeypatch, train=JobState("RUNNING"))
    monkeypatch.setattr(client, "is_available", lambda: False)
    assert stage_texts(run)["train"] == "unknown, job 8"
    finish(run, "train")
    assert stage_texts(run)["train"] == "done"


def test_watch_retries_if_slurm_does_not_answer(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run, "prepare", "train", "evaluate", "promote")
    write_jobs(run.launch, [StageJob("train", "8", "tiny-train")])
    monkeypatch.setattr(client, "is_available", lambda: True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers = iter([TunesmithError("Slurm does not answer"), JobState("COMPLETED")])

    def job_state(job: str, name: str) -> JobState:
        answer = next(answers)
        if isinstance(answer, TunesmithError):
            raise answer
        return answer

    monkeypatch.setattr("tunesmith.slurm.jobs.job_state", job_state)
    watch_run(run, every=0)
    assert "Slurm does not answer" in capsys.readouterr().err


def test_the_progress_of_further_seeds_is_that_of_all(run: RunDir) -> None:
    write_text(run.resolved_recipe, dump_recipe(load_recipe(run.resolved_recipe, ["replicates=4"])))
    write_json(run.environment, {"recipe_folder": ".."})
    finish(run, "prepare", "train")
    assert stage_texts(run)["replicate"] == "to do"
    first, second = run.replicate(1), run.replicate(2)
    for seed in (first, second):
        seed.stage("train").mkdir(parents=True)
    write_steps(first, 30)  # it stopped early
    write_json(first.stage("train") / "manifest.json", {})
    write_steps(second, 10)
    with exclusive_lock(run.lock):
        status = next(stage for stage in status_of(run).stages if stage.stage == "replicate")
    assert (status.state, status.done_of) == ("working", (50, 120))
    assert status.seconds_left == 2.0 * 70
    assert "evaluate" in stage_texts(run)
