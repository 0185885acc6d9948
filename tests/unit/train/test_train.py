"""A run that is stopped, killed or damaged resumes to the same result, or reports why it cannot."""

import itertools
import json
import math
import os
import resource
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.earlier_versions import without
from tests.support.errors import raises
from tests.support.tiny import save_model
from tests.unit.train.conftest import FULL, LORA, Job, MakeJob, random_rows, recipe_of

from tunesmith.core import interrupt
from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import DamagedFile, DoesNotFit, Interrupted, NonFinite, RecipeError
from tunesmith.core.files import check_folder, digest_of, read_json, seal_folder, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_file import write_tokens
from tunesmith.distributed.process_group import cores_per_rank
from tunesmith.estimate.throughput import load_speed
from tunesmith.fetch.reference import CARD, resolve
from tunesmith.model.load import ComputeConfig
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.train import async_save, checkpoint, loop, validate
from tunesmith.train import train as stage
from tunesmith.train.checkpoint import State, latest_state, prune
from tunesmith.train.inputs import inputs
from tunesmith.train.loop import Measurement
from tunesmith.train.setup import load_model_to_train

DORA = {**LORA, "dora": True, "rslora": True}
NF4, INT8 = ({**LORA, "method": "qlora", "bits": bits} for bits in (4, 8))
WITH_ANSWERS = {"valid_metrics": ["chrf"], "select_best_by": "chrf", "valid_rows": 4}
BOTH = pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])


def assert_same_result(one: Job, other: Job) -> None:
    """Assert that two runs have the same files (to the byte), log, manifest and state."""
    assert one.log() == other.log()
    assert one.answers() == other.answers()
    assert one.steps == other.steps
    for step in one.steps:
        assert one.result(step) == other.result(step)
    manifests = [read_json(run.run.stage("train") / "manifest.json") for run in (one, other)]
    for manifest in manifests:
        for name in ("seconds", "tokens_per_second", "peak_memory_gib", "files"):
            del manifest[name]
    assert manifests[0] == manifests[1]


def copied(one: Job, folder: Path) -> Job:
    """Copy a run's folder."""
    shutil.copytree(one.run.path, folder)
    return Job(one.recipe, RunDir(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Let validation measure these losses, by step."""
    steps = iter(losses)
    monkeypatch.setattr(
        validate,
        "measure",
        lambda setup, tokens, rows, on_progress: Measurement({"loss": losses[next(steps)], "token_accuracy": 0.5}, 10),
    )


# --- files and the best step ---


def test_train_writes_checkpoints_a_log_and_a_manifest(new_job: MakeJob) -> None:
    job = new_job()
    manifest = job.train()
    assert manifest == read_json(job.run.stage("train") / "manifest.json")
    assert check_folder(job.run.stage("train")) == manifest
    assert (manifest["steps"], manifest["precision"], manifest["stage"]) == (6, "fp32", "train")
    assert manifest["best_step"] in job.steps
    assert manifest["trainable_parameters"] < manifest["all_parameters"]
    assert manifest["tokens"] == sum(len(row.input_ids) for row in random_rows(24, 1))
    lines = [(line["kind"], line["step"]) for line in job.log()]
    assert lines == [
        ("valid", 0), ("step", 1), ("step", 2), ("valid", 2), ("step", 3), ("step", 4), ("valid", 4), ("step", 5),
        ("step", 6), ("valid", 6),
    ]  # fmt: skip
    needed = {f"model/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", CARD)}
    for step in job.steps:
        assert check_folder(job.run.checkpoint(step))["step"] == step
        assert set(job.result(step)) >= {*needed, "optimizer.safetensors"}


@BOTH
def test_training_is_deterministic(new_job: MakeJob, finished_job: MakeJob, tuning: dict[str, Any]) -> None:
    one, other = finished_job(tuning), new_job(tuning)
    torch.rand(3)
    other.train()
    assert_same_result(one, other)


def test_best_step_has_the_lowest_validation_loss(new_job: MakeJob) -> None:
    job = new_job(valid_every_steps=1, keep_checkpoints=1, learning_rate=0.05)
    manifest = job.train()
    losses = {line["step"]: line["loss"] for line in job.log() if line["kind"] == "valid" and line["step"]}
    assert manifest["best_step"] == min(losses, key=lambda step: losses[step])
    assert manifest["best_value"] == min(losses.values())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_keeps_the_best_and_the_latest_checkpoints(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    scripted(monkeypatch, {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 2.0, 5: 6.0, 6: 7.0})
    job = new_job(valid_every_steps=1, save_every_steps=1, keep_checkpoints=keep)
    kept: list[tuple[list[int], int | None]] = []
    pruned = prune
    monkeypatch.setattr(
        async_save, "prune", lambda run, **given: (pruned(run, **given), kept.append((job.steps, given["best_step"])))
    )
    assert job.train()["best_step"] == 4
    best = [1, 2, 2, 4, 4, 4]
    assert kept == [
        (sorted({*range(max(1, step - keep + 1), step + 1), best[step - 1]}), best[step - 1]) for step in range(1, 7)
    ]


def test_new_best_step_is_saved_between_two_save_intervals(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {0: 9.0, 1: 5.0, 2: 6.0, 3: 4.0, 4: 4.0, 5: 6.0, 6: 7.0})
    job = new_job(valid_every_steps=1, save_every_steps=5, keep_checkpoints=1)
    assert job.train()["best_step"] == 3  # the earlier of two equal ones
    assert job.steps == [3, 6]


def test_last_step_is_the_best_without_validation_rows(new_job: MakeJob) -> None:
    job = new_job(valid=0)
    manifest = job.train()
    assert (manifest["best_step"], manifest["best_value"]) == (6, None)
    assert {line["kind"] for line in job.log()} == {"step"}
    job = new_job(name="no-file")
    job.run.tokens("valid").unlink()
    assert job.train()["best_step"] == 6


def test_finished_training_without_manifest_takes_no_step(
    finished_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copied(finished_job(), tmp_path / "other")
    (other.run.stage("train") / "manifest.json").unlink()  # killed just before the manifest was written
    monkeypatch.setattr(loop, "token_loss", None)
    other.train()
    assert_same_result(finished_job(), other)


# --- killed ---


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


# --- stopped ---


def signal_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Send this process a signal at one call of a function."""
    original, calls = getattr(module, name), []

    def signalling(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **given)

    monkeypatch.setattr(module, name, signalling)


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


# --- damaged ---


@pytest.fixture
def stopped(new_job: MakeJob) -> Job:
    """A stopped run with checkpoints 2 and 4."""
    job = new_job(keep_checkpoints=3)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, loop, "accumulate_gradients", 6)
        with interrupt.catch_signals(), pytest.raises(Interrupted):
            job.train()
    assert job.steps == [2, 4, 5]
    shutil.rmtree(job.run.checkpoint(5))
    return job


FILES = ["model/adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_reported_and_skipped(
    stopped: Job, finished_job: MakeJob, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "manifest.json":
        (stopped.run.checkpoint(4) / name).unlink()
    else:
        flip(stopped.run.checkpoint(4) / name)
    stopped.train()
    assert "step-000004" in capsys.readouterr().err
    assert_same_result(finished_job(keep_checkpoints=3), stopped)


def test_training_does_not_start_over_if_all_checkpoints_are_damaged(stopped: Job) -> None:
    for step in stopped.steps:
        flip(stopped.run.checkpoint(step) / "model" / "adapter_model.safetensors")
    with raises(DamagedFile, "no-intact-checkpoint", "step-000004, step-000002") as caught:
        stopped.train()
    assert caught.value.exit_code == 6
    assert stopped.steps == [2, 4]


@pytest.mark.slow
def test_damaged_checkpoints_do_not_count_as_kept(finished_job: MakeJob, tmp_path: Path) -> None:
    settings = {"save_every_steps": 1, "valid_every_steps": 6}
    uninterrupted, source = finished_job(keep_checkpoints=2, **settings), finished_job(keep_checkpoints=9, **settings)
    job = copied(source, tmp_path / "run")
    job.recipe = uninterrupted.recipe
    (job.run.stage("train") / "manifest.json").unlink()
    for step in (1, 2):
        shutil.rmtree(job.run.checkpoint(step))
    for step in (4, 5, 6):
        flip(job.run.checkpoint(step) / "optimizer.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, loop, "accumulate_gradients", 2)  # step 4 is job again and saved, then the run is stopped
        with interrupt.catch_signals(), pytest.raises(Interrupted):
            job.train()
    assert job.steps == [3, 4]
    assert all(check_folder(job.run.checkpoint(step)) for step in (3, 4))
    job.train()
    assert_same_result(uninterrupted, job)


def test_resume_with_a_damaged_best_checkpoint_is_refused(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {0: 9.0, 2: 1.0, 4: 2.0, 6: 3.0})
    job = new_job(keep_checkpoints=1)
    job.train()
    assert job.steps == [2, 6]
    (job.run.stage("train") / "manifest.json").unlink()
    flip(job.run.checkpoint(2) / "model" / "adapter_model.safetensors")
    with pytest.raises(DamagedFile):
        job.train()


def test_best_step_is_found_again_if_its_checkpoint_was_pruned_and_the_better_one_damaged(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 2: 5.0, 4: 6.0, 6: 3.0}
    scripted(monkeypatch, losses)
    job = new_job(keep_checkpoints=2)
    job.train()
    assert job.steps == [4, 6]  # at step 4, step 2 was the best
    (job.run.stage("train") / "manifest.json").unlink()
    flip(job.run.checkpoint(6) / "model" / "adapter_model.safetensors")
    scripted(monkeypatch, {6: 3.0})
    assert job.train()["best_step"] == 6
    assert job.steps == [4, 6]


def test_checkpoint_of_other_settings_is_refused(finished_job: MakeJob, tmp_path: Path) -> None:
    job = copied(finished_job(), tmp_path / "run")
    other = Job(
        job.recipe.model_copy(update={"train": job.recipe.train.model_copy(update={"learning_rate": 0.5})}),
        job.run,
    )
    with raises(RecipeError, "inputs-changed", "train.learning_rate"):
        other.train()
    # The micro-batch size and the number of kept checkpoints do not count.
    train = job.recipe.train.model_copy(update={"micro_batch": 1, "keep_checkpoints": 1})
    Job(job.recipe.model_copy(update={"train": train}), job.run).train()


def test_checkpoint_of_an_earlier_version_resumes(finished_job: MakeJob, tmp_path: Path) -> None:
    job = copied(finished_job(), tmp_path / "run")
    for recorded in ("without a key", "as a digest"):
        (job.run.stage("train") / "manifest.json").unlink()
        for step in job.steps:
            folder = job.run.checkpoint(step)
            state = read_json(folder / "state.json")
            state["inputs"] = inputs(job.recipe, job.run)
            if recorded == "without a key":
                without("train.beta1")(state["inputs"])
            else:
                state["inputs"] = digest_of(state["inputs"])
            write_json(folder / "state.json", state)
            seal_folder(folder, step=step)
        assert job.train()["steps"] == 6


def test_state_round_trip(new_job: MakeJob, finished_job: MakeJob) -> None:
    job = finished_job()
    last = job.run.checkpoint(6)
    state = State(**read_json(last / "state.json"))
    assert latest_state(job.recipe, job.run, inputs(job.recipe, job.run)) == state
    assert state.inputs == inputs(job.recipe, job.run)
    assert state.step == state.validated_step == 6
    assert State(**json.loads(json.dumps(asdict(state)))) == state
    empty = new_job(name="empty")
    assert latest_state(empty.recipe, empty.run, {}) is None


# --- errors ---


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
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
    write_tokens(job.run.tokens(split), [row, long])
    with raises(RecipeError, "too-many-tokens", 513, 512):
        job.train()
    assert job.steps == []
    just = replace(row, input_ids=row.input_ids[:1] * 512, trained=(False,) + (True,) * 511)
    write_tokens(job.run.tokens(split), [row, just] * 3)
    job.train()


def test_read_only_speed_cache_does_not_fail_training(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path, value: Any) -> None:
        raise OSError(30, "read-only")

    monkeypatch.setattr("tunesmith.estimate.throughput.write_json", refused)
    assert new_job().train()["steps"] == 6


@pytest.mark.parametrize(
    ("kind", "is_sharded", "dtype"),
    [
        ("llama", True, torch.bfloat16),
        ("llama", False, torch.float32),
        ("gemma3_text", True, torch.float32),  # it computes constants when it is built
    ],
)
def test_model_to_shard_is_loaded_in_its_stored_dtype(
    kind: str, is_sharded: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / kind, kind)
    weights = folder / "model.safetensors"
    save_file({n: w.bfloat16() for n, w in load_file(weights).items()}, weights, metadata={"format": "pt"})
    base, recipe = resolve(str(folder)), recipe_of(folder, FULL)
    compute, tokenizer = ComputeConfig(torch.device("cpu"), torch.float32), load_tokenizer(base, None)
    model = load_model_to_train(recipe, base, compute, torch.float32, tokenizer, is_sharded=is_sharded)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_training_speed_is_saved(new_job: MakeJob, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    digest = resolve(str(base)).digest()
    manifest = new_job().train()
    known = load_speed(digest, "lora")
    assert known is not None
    assert known.cores == cores_per_rank(RankInfo())
    assert 0 < known.update_seconds < manifest["seconds"] / manifest["steps"]
    step = manifest["tokens"] / manifest["steps"]
    assert step / known.step_seconds(step) == pytest.approx(manifest["tokens_per_second"], rel=0.01)
    assert load_speed("another", "lora") is None
    [file] = (tmp_path / "cache" / "speed").glob("*.json")
    write_json(file, None)
    assert load_speed(digest, "lora") is None
    file.write_text("{")
    assert load_speed(digest, "lora") is None
