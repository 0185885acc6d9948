"""Checkpoints that are damaged, or of other settings or earlier versions, are skipped, refused or read."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.support.earlier_versions import without
from tests.support.errors import raises
from tests.support.tiny import CHATML
from tests.unit.train.conftest import (
    BOTH,
    Job,
    MakeJob,
    assert_same_result,
    copied,
    flip,
    scripted,
    signal_at,
)

from tunesmith.core import interrupt
from tunesmith.core.errors import DamagedFile, Interrupted, RecipeError
from tunesmith.core.files import check_folder, digest_of, read_json, seal_folder, write_json
from tunesmith.fetch.reference import resolve
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer_files import load_plain_tokenizer
from tunesmith.train import loop
from tunesmith.train.checkpoint import State, latest_state
from tunesmith.train.inputs import inputs

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


@BOTH
def test_other_programs_open_a_checkpoint(base: Path, finished_job: MakeJob, tuning: dict[str, Any]) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder = finished_job(tuning).run.checkpoint(6) / "model"
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["chat_template"] == CHATML
    if tuning["method"] == "full":
        config = read_json(folder / "config.json")
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert config["torch_dtype"] == config["dtype"]
        assert AutoModelForCausalLM.from_pretrained(folder).config.rope_parameters == config["rope_parameters"]
        assert load_plain_tokenizer(folder) is not None
    else:
        assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == str(base)
        assert AutoPeftModelForCausalLM.from_pretrained(folder).peft_config["default"].r == tuning["rank"]
    # Models of equal tokenizers are compared by likelihood.
    assert load_tokenizer(resolve(str(folder))).digest == load_tokenizer(resolve(str(base))).digest


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
        signal_at(patch, loop, "accumulate_gradients", 2)  # step 4 is trained again and saved, then the run is stopped
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
