"""Stopped, killed or damaged anywhere, a run goes on as if nothing had happened, or says why it cannot."""

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
from tests.support.earlier import without
from tests.support.errors import raises
from tests.support.tiny import save_model
from tests.unit.train.conftest import FULL, LORA, Start, Trained, random_rows, recipe_of

from tunesmith.core import interrupt
from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import DamagedFile, DoesNotFit, Interrupted, NonFinite, RecipeError
from tunesmith.core.files import check_folder, digest_of, read_json, seal_folder, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_file import write_tokens
from tunesmith.distributed.process_group import cores_per_rank
from tunesmith.estimate.throughput import _place, load_speed
from tunesmith.fetch.reference import CARD, resolve
from tunesmith.model.load import ComputeConfig
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.train import async_save, checkpoint, loop, validate
from tunesmith.train import train as stage
from tunesmith.train.checkpoint import State, latest_state, prune
from tunesmith.train.inputs import inputs
from tunesmith.train.loop import Measurement

DORA = {**LORA, "dora": True, "rslora": True}
NF4, INT8 = ({**LORA, "method": "qlora", "bits": bits} for bits in (4, 8))
ANSWERED = {"valid_metrics": ["chrf"], "select_best_by": "chrf", "valid_rows": 4}
BOTH = pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])


def same_end(one: Trained, other: Trained) -> None:
    """Assert that two runs ended alike: files to the byte, log, manifest, state."""
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


def copied(one: Trained, folder: Path) -> Trained:
    """Copy a run's folder, as it would be on another disk."""
    shutil.copytree(one.run.path, folder)
    return Trained(one.recipe, RunDir(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Let validation find what is written here, by step."""
    steps = iter(losses)
    monkeypatch.setattr(
        validate,
        "measure",
        lambda setup, tokens, rows, seen: Measurement({"loss": losses[next(steps)], "token_accuracy": 0.5}, 10),
    )


# --- what a run leaves ---


def test_a_run_leaves_checkpoints_a_log_and_a_manifest(start: Start) -> None:
    made = start()
    manifest = made.go()
    assert manifest == read_json(made.run.stage("train") / "manifest.json")
    assert check_folder(made.run.stage("train")) == manifest
    assert (manifest["steps"], manifest["precision"], manifest["stage"]) == (6, "fp32", "train")
    assert manifest["best_step"] in made.steps
    assert manifest["trainable_parameters"] < manifest["all_parameters"]
    assert manifest["tokens"] == sum(len(row.input_ids) for row in random_rows(24, 1))
    found = [(line["kind"], line["step"]) for line in made.log()]
    assert found == [
        ("valid", 0), ("step", 1), ("step", 2), ("valid", 2), ("step", 3), ("step", 4), ("valid", 4), ("step", 5),
        ("step", 6), ("valid", 6),
    ]  # fmt: skip
    needed = {f"model/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", CARD)}
    for step in made.steps:
        assert check_folder(made.run.checkpoint(step))["step"] == step
        assert set(made.result(step)) >= {*needed, "optimizer.safetensors"}


@BOTH
def test_a_run_is_the_same_every_time(start: Start, whole: Start, tuning: dict[str, Any]) -> None:
    one, other = whole(tuning), start(tuning)
    torch.rand(3)
    other.go()
    same_end(one, other)


def test_the_best_step_is_that_of_the_lowest_validation_loss(start: Start) -> None:
    made = start(valid_every_steps=1, keep_checkpoints=1, learning_rate=0.05)
    manifest = made.go()
    losses = {line["step"]: line["loss"] for line in made.log() if line["kind"] == "valid" and line["step"]}
    assert manifest["best_step"] == min(losses, key=lambda step: losses[step])
    assert manifest["best_value"] == min(losses.values())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_best_step_and_the_latest_are_always_on_disk(
    start: Start, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    scripted(monkeypatch, {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 2.0, 5: 6.0, 6: 7.0})
    made = start(valid_every_steps=1, save_every_steps=1, keep_checkpoints=keep)
    kept: list[tuple[list[int], int | None]] = []
    pruned = prune
    monkeypatch.setattr(
        async_save, "prune", lambda run, **given: (pruned(run, **given), kept.append((made.steps, given["best_step"])))
    )
    assert made.go()["best_step"] == 4
    best = [1, 2, 2, 4, 4, 4]
    assert kept == [
        (sorted({*range(max(1, step - keep + 1), step + 1), best[step - 1]}), best[step - 1]) for step in range(1, 7)
    ]


def test_an_improvement_between_two_intervals_is_saved(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {0: 9.0, 1: 5.0, 2: 6.0, 3: 4.0, 4: 4.0, 5: 6.0, 6: 7.0})
    made = start(valid_every_steps=1, save_every_steps=5, keep_checkpoints=1)
    assert made.go()["best_step"] == 3  # the earlier one of two that are equal
    assert made.steps == [3, 6]


def test_without_validation_rows_the_last_step_is_the_best(start: Start) -> None:
    made = start(valid=0)
    manifest = made.go()
    assert (manifest["best_step"], manifest["best_value"]) == (6, None)
    assert {line["kind"] for line in made.log()} == {"step"}
    made = start(name="no-file")
    made.run.tokens("valid").unlink()
    assert made.go()["best_step"] == 6


def test_a_finished_run_is_finished_again_without_a_step(
    whole: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copied(whole(), tmp_path / "other")
    (other.run.stage("train") / "manifest.json").unlink()  # killed just before it was written
    monkeypatch.setattr(loop, "token_loss", None)
    other.go()
    same_end(whole(), other)


# --- killed ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "steps", "settings"),
    [(LORA, (0, 2, 5), {}), (FULL, (3,), {}), (DORA, (3,), {}), (NF4, (3,), {}), (INT8, (3,), {}),
     (LORA, (0, 3, 4), ANSWERED),
     pytest.param(LORA, (1, 3, 4), {}, marks=pytest.mark.slow),
     pytest.param(FULL, (0, 1, 2, 4, 5), ANSWERED, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_run_killed_after_any_step_ends_as_if_it_had_not_been(
    whole: Start, tmp_path: Path, tuning: dict[str, Any], steps: tuple[int, ...], settings: dict[str, Any]
) -> None:
    uninterrupted = whole(tuning, save_every_steps=1, keep_checkpoints=9, **settings)
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
        killed.go()
        same_end(uninterrupted, killed)
        assert not leftover.exists()


class Killed(BaseException):
    """Ends a process where nothing may catch it."""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["model", "optimizer", "state", "rename", "prune"])
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    killed = start()
    places = {
        "model": (checkpoint, "save_model"),
        "optimizer": (checkpoint, "save_file"),
        "state": (checkpoint, "write_json"),
        "rename": (Path, "rename"),
        "prune": (async_save, "prune"),
    }
    module, name = places[at]
    real, calls = getattr(module, name), []

    def dying(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == (3 if at == "state" else 2):  # in the second checkpoint; the card is the third JSON file
            raise Killed
        return real(*args, **given)

    monkeypatch.setattr(module, name, dying)
    with pytest.raises(Killed):
        killed.go()
    monkeypatch.undo()
    assert all(check_folder(killed.run.checkpoint(step)) for step in killed.steps)
    killed.go()
    same_end(whole(), killed)


# --- stopped ---


def signal_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Send this process a signal at one call of a function."""
    real, calls = getattr(module, name), []

    def noisy(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **given)

    monkeypatch.setattr(module, name, noisy)


@BOTH
def test_a_signal_in_the_middle_of_a_step_keeps_the_step_before(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch, tuning: dict[str, Any]
) -> None:
    settings = {"micro_batch": 1, "valid_every_steps": 6, "save_every_steps": 6}
    uninterrupted, stopped = whole(tuning, **settings), start(tuning, **settings)
    # Four micro-batches a step, and some before for the first validation.
    steps: list[int] = []
    accumulate = loop.accumulate_gradients
    monkeypatch.setattr(loop, "accumulate_gradients", lambda *args: (steps.append(1), accumulate(*args))[1])
    token_loss, calls = loop.token_loss, []

    def noisy(*args: Any) -> Any:
        calls.append(len(steps))
        if calls.count(4) == 2:  # the second micro-batch of the fourth step
            signal.raise_signal(signal.SIGTERM)
        return token_loss(*args)

    monkeypatch.setattr(loop, "token_loss", noisy)
    with interrupt.catch_signals(), pytest.raises(Interrupted) as caught:
        stopped.go()
    assert caught.value.exit_code == 75
    assert calls.count(4) == 2
    assert stopped.steps == [3]
    assert not (stopped.run.stage("train") / "manifest.json").exists()
    monkeypatch.undo()
    stopped.go()
    assert uninterrupted.steps == [6]
    assert uninterrupted.result(6) == stopped.result(6)
    assert uninterrupted.log() == stopped.log()


@pytest.mark.slow
@pytest.mark.parametrize("validation", [1, 2, 3, 4])
@pytest.mark.parametrize("in_work", ["measure", "predict"])
def test_a_signal_in_a_validation_loses_neither_the_step_nor_the_validation(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch, validation: int, in_work: str
) -> None:
    settings = {"keep_checkpoints": 9, **(ANSWERED if in_work == "predict" else {})}
    uninterrupted, stopped = whole(**settings), start(**settings)
    signal_at(monkeypatch, validate, in_work, validation)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        stopped.go()
    step = 2 * (validation - 1)
    assert stopped.steps == [kept for kept in (2, 4, 6) if kept <= step]
    assert [line["step"] for line in stopped.log() if line["kind"] == "valid"] == list(range(0, step, 2))
    assert sorted(stopped.answers()) == (list(range(0, step, 2)) if in_work == "predict" else [])
    monkeypatch.undo()
    # Once more, so that the repeated validation is lost too.
    signal_at(monkeypatch, validate, in_work, 1)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        stopped.go()
    monkeypatch.undo()
    stopped.go()
    assert uninterrupted.log() == stopped.log()
    assert uninterrupted.answers() == stopped.answers()
    manifests = [read_json(one.run.stage("train") / "manifest.json") for one in (uninterrupted, stopped)]
    assert manifests[0]["best_step"] == manifests[1]["best_step"]
    assert manifests[0]["best_value"] == manifests[1]["best_value"]
    name = "model/adapter_model.safetensors"
    assert stopped.result(6)[name] == uninterrupted.result(6)[name]


def test_a_signal_while_saving_waits_until_that_is_done(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = start()
    signal_at(monkeypatch, checkpoint, "save_model", 1)
    with interrupt.catch_signals(), pytest.raises(Interrupted):
        made.go()
    assert made.steps == [2]
    check_folder(made.run.checkpoint(2))


# --- damaged ---


@pytest.fixture
def stopped(start: Start) -> Trained:
    """A run with checkpoints 2 and 4, to be gone on with."""
    made = start(keep_checkpoints=3)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, loop, "accumulate_gradients", 6)
        with interrupt.catch_signals(), pytest.raises(Interrupted):
            made.go()
    assert made.steps == [2, 4, 5]
    shutil.rmtree(made.run.checkpoint(5))
    return made


FILES = ["model/adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    stopped: Trained, whole: Start, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "manifest.json":
        (stopped.run.checkpoint(4) / name).unlink()
    else:
        flip(stopped.run.checkpoint(4) / name)
    stopped.go()
    assert "step-000004" in capsys.readouterr().err
    same_end(whole(keep_checkpoints=3), stopped)


def test_if_all_checkpoints_are_damaged_the_run_does_not_start_again(stopped: Trained) -> None:
    for step in stopped.steps:
        flip(stopped.run.checkpoint(step) / "model" / "adapter_model.safetensors")
    with pytest.raises(DamagedFile, match="step-000004, step-000002") as caught:
        stopped.go()
    assert caught.value.exit_code == 6
    assert stopped.steps == [2, 4]


@pytest.mark.slow
def test_damaged_checkpoints_do_not_push_out_those_that_are_whole(whole: Start, tmp_path: Path) -> None:
    settings = {"save_every_steps": 1, "valid_every_steps": 6}
    uninterrupted, source = whole(keep_checkpoints=2, **settings), whole(keep_checkpoints=9, **settings)
    made = copied(source, tmp_path / "run")
    made.recipe = uninterrupted.recipe
    (made.run.stage("train") / "manifest.json").unlink()
    for step in (1, 2):
        shutil.rmtree(made.run.checkpoint(step))
    for step in (4, 5, 6):
        flip(made.run.checkpoint(step) / "optimizer.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, loop, "accumulate_gradients", 2)  # step 4 is made again and saved, then the run is stopped
        with interrupt.catch_signals(), pytest.raises(Interrupted):
            made.go()
    assert made.steps == [3, 4]
    assert all(check_folder(made.run.checkpoint(step)) for step in (3, 4))
    made.go()
    same_end(uninterrupted, made)


def test_a_run_whose_best_checkpoint_is_damaged_does_not_go_on_to_end_with_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {0: 9.0, 2: 1.0, 4: 2.0, 6: 3.0})
    made = start(keep_checkpoints=1)
    made.go()
    assert made.steps == [2, 6]
    (made.run.stage("train") / "manifest.json").unlink()
    flip(made.run.checkpoint(2) / "model" / "adapter_model.safetensors")
    with pytest.raises(DamagedFile):
        made.go()


def test_a_best_checkpoint_that_was_pruned_for_a_better_one_is_found_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 2: 5.0, 4: 6.0, 6: 3.0}
    scripted(monkeypatch, losses)
    made = start(keep_checkpoints=2)
    made.go()
    assert made.steps == [4, 6]  # step 4 says that 2 is the best
    (made.run.stage("train") / "manifest.json").unlink()
    flip(made.run.checkpoint(6) / "model" / "adapter_model.safetensors")
    scripted(monkeypatch, {6: 3.0})
    assert made.go()["best_step"] == 6
    assert made.steps == [4, 6]


def test_a_checkpoint_of_other_settings_is_refused(whole: Start, tmp_path: Path) -> None:
    made = copied(whole(), tmp_path / "run")
    other = Trained(
        made.recipe.model_copy(update={"train": made.recipe.train.model_copy(update={"learning_rate": 0.5})}),
        made.run,
    )
    with pytest.raises(RecipeError, match="other data, settings"):
        other.go()
    # How rows are cut and how much is kept is no such setting.
    train = made.recipe.train.model_copy(update={"micro_batch": 1, "keep_checkpoints": 1})
    Trained(made.recipe.model_copy(update={"train": train}), made.run).go()


def test_a_checkpoint_of_an_earlier_version_goes_on(whole: Start, tmp_path: Path) -> None:
    made = copied(whole(), tmp_path / "run")
    for recorded in ("without a key", "as a digest"):
        (made.run.stage("train") / "manifest.json").unlink()
        for step in made.steps:
            folder = made.run.checkpoint(step)
            state = read_json(folder / "state.json")
            state["inputs"] = inputs(made.recipe, made.run)
            if recorded == "without a key":
                without("train.beta1")(state["inputs"])
            else:
                state["inputs"] = digest_of(state["inputs"])
            write_json(folder / "state.json", state)
            seal_folder(folder, step=step)
        assert made.go()["steps"] == 6


def test_a_state_comes_back_as_it_was(start: Start, whole: Start) -> None:
    made = whole()
    last = made.run.checkpoint(6)
    state = State(**read_json(last / "state.json"))
    assert latest_state(made.recipe, made.run, inputs(made.recipe, made.run)) == state
    assert state.inputs == inputs(made.recipe, made.run)
    assert state.step == state.validated_step == 6
    assert State(**json.loads(json.dumps(asdict(state)))) == state
    empty = start(name="empty")
    assert latest_state(empty.recipe, empty.run, {}) is None


# --- what stops a run ---


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_a_full_disk_is_told_and_nothing_is_lost(start: Start, whole: Start, tuning: dict[str, Any]) -> None:
    made = start(tuning)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        with pytest.raises(DoesNotFit) as caught:
            made.go()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 5
    assert made.steps == []
    assert [path.name for path in made.run.checkpoints.iterdir()] == []
    made.go()
    same_end(whole(tuning), made)


def test_a_log_that_no_longer_fits_is_told(start: Start, whole: Start) -> None:
    made = start()
    log = stage._Session._log
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def small(self: Any, file: Any, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.tell() + 20, limits[1]))
        log(self, file, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage._Session, "_log", small)
        try:
            with pytest.raises(DoesNotFit):
                made.go()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not made.run.metrics.read_bytes().endswith(b"\n")
    made.go()
    same_end(whole(), made)


def test_a_log_is_not_lost_when_a_resume_meets_a_full_disk(stopped: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stopped.run.metrics.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DoesNotFit):
        stopped.go()
    assert stopped.run.metrics.read_bytes() == before


def test_a_loss_that_is_not_finite_keeps_what_was_saved(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = start()
    real, calls = loop.accumulate_gradients, itertools.count(1)
    monkeypatch.setattr(
        loop, "accumulate_gradients", lambda *given: real(*given) * (math.nan if next(calls) == 4 else 1)
    )
    with pytest.raises(NonFinite) as caught:
        made.go()
    assert caught.value.exit_code == 7
    assert made.steps == [2]
    assert [line["step"] for line in made.log() if line["kind"] == "step"] == [1, 2, 3]
    monkeypatch.undo()
    made.go()  # whatever it was is mended


@pytest.mark.parametrize("at", [0, 4])
def test_a_validation_loss_that_is_not_finite_is_told(start: Start, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    scripted(monkeypatch, {step: math.nan if step == at else 1.0 for step in (0, 2, 4)})
    made = start()
    with pytest.raises(NonFinite, match="validation loss became nan"):
        made.go()
    assert made.steps == ([2] if at else [])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_rows_beyond_the_model_s_positions_are_refused_before_training(start: Start, split: str) -> None:
    made = start()
    row = random_rows(1, 5)[0]
    long = replace(row, input_ids=row.input_ids[:1] * 513, trained=(False,) + (True,) * 512)
    write_tokens(made.run.tokens(split), [row, long])
    with raises(RecipeError, "too-many-tokens", 513, 512):
        made.go()
    assert made.steps == []
    just = replace(row, input_ids=row.input_ids[:1] * 512, trained=(False,) + (True,) * 511)
    write_tokens(made.run.tokens(split), [row, just] * 3)
    made.go()


def test_a_cache_that_cannot_be_written_costs_no_training(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path, value: Any) -> None:
        raise OSError(30, "read-only")

    monkeypatch.setattr("tunesmith.estimate.throughput.write_json", refused)
    assert start().go()["steps"] == 6


@pytest.mark.parametrize(
    ("kind", "in_parts", "read"),
    [
        ("llama", True, torch.bfloat16),
        ("llama", False, torch.float32),
        ("gemma3_text", True, torch.float32),  # which makes constants for itself
    ],
)
def test_what_is_divided_is_read_as_it_is_stored(kind: str, in_parts: bool, read: torch.dtype, tmp_path: Path) -> None:
    place = save_model(tmp_path / kind, kind)
    weights = place / "model.safetensors"
    save_file({n: w.bfloat16() for n, w in load_file(weights).items()}, weights, metadata={"format": "pt"})
    base, recipe = resolve(str(place)), recipe_of(place, FULL)
    at = ComputeConfig(torch.device("cpu"), torch.float32)
    model = stage._open(recipe, base, at, torch.float32, load_tokenizer(base, None), in_parts=in_parts)
    assert {weight.dtype for weight in model.parameters()} == {read}


def test_the_speed_of_a_run_is_remembered(start: Start, base: Path) -> None:
    digest = resolve(str(base)).digest()
    manifest = start().go()
    known = load_speed(digest, "lora")
    assert known is not None
    assert known.cores == cores_per_rank(RankInfo())
    assert 0 < known.update_seconds < manifest["seconds"] / manifest["steps"]
    step = manifest["tokens"] / manifest["steps"]
    assert step / known.step_seconds(step) == pytest.approx(manifest["tokens_per_second"], rel=0.01)
    assert load_speed("another", "lora") is None
    write_json(_place(digest, "lora"), None)
    assert load_speed(digest, "lora") is None
    _place(digest, "lora").write_text("{")
    assert load_speed(digest, "lora") is None
