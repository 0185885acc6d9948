"""Training writes checkpoints, a log and a manifest, keeps the best step, and records its speed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.train.conftest import BOTH, FULL, MakeJob, assert_same_result, copied, random_rows, scripted

from tunesmith.core.dist_env import RankInfo
from tunesmith.core.files import check_folder, read_json, write_json
from tunesmith.distributed.process_group import cores_per_rank
from tunesmith.estimate.throughput import load_speed, speed_key
from tunesmith.fetch.reference import CARD, resolve
from tunesmith.train import async_save, loop
from tunesmith.train.checkpoint import prune


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


def test_read_only_speed_cache_does_not_fail_training(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path, value: Any) -> None:
        raise OSError(30, "read-only")

    monkeypatch.setattr("tunesmith.estimate.throughput.write_json", refused)
    assert new_job().train()["steps"] == 6


def test_training_speed_is_saved(new_job: MakeJob, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    job = new_job()
    key = speed_key(resolve(str(base)).digest(), job.recipe)
    manifest = job.train()
    known = load_speed(key)
    assert known is not None
    assert known.cores == cores_per_rank(RankInfo())
    assert 0 < known.update_seconds < manifest["seconds"] / manifest["steps"]
    step = manifest["tokens"] / manifest["steps"]
    assert step / known.step_seconds(step) == pytest.approx(manifest["tokens_per_second"], rel=0.01)
    for other in ({"tuning": FULL}, {"optimizer": "sgd"}):
        assert load_speed(speed_key(resolve(str(base)).digest(), new_job(**other, name="other").recipe)) is None
    [file] = (tmp_path / "cache" / "speed").glob("*.json")
    write_json(file, None)
    assert load_speed(key) is None
    file.write_text("{")
    assert load_speed(key) is None
