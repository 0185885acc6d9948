"""Answers to valid rows are scored at each validation and may select the checkpoint, without changing training."""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.train.conftest import BOTH, Job, MakeJob, documents

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import check_folder, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.inference.scorer import Scorer
from tunesmith.scoring.metrics import score
from tunesmith.train import loop, validate
from tunesmith.train.inputs import inputs
from tunesmith.train.train import train
from tunesmith.train.validate import is_better

STEPS = (0, 2, 4, 6)
NAMES = ["rouge", "chrf"]


def write_metric(job: Job, body: str, name: str = "mine") -> None:
    """Write a custom metric next to the recipe."""
    (job.run.path.parent / f"{name}.py").write_text(body)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float], scores: list[float]) -> None:
    """Let consecutive validations measure these losses and scores."""
    measured, scored = iter(losses), iter(scores)
    monkeypatch.setattr(
        validate,
        "measure",
        lambda setup, tokens, rows, on_progress: ({"loss": next(measured), "token_accuracy": 0.5}, 10),
    )
    monkeypatch.setattr(Scorer, "score", lambda self, name, lines: [next(scored)] * len(lines))


# --- values ---


@BOTH
def test_each_validation_scores_answers_to_the_same_rows_and_stores_them(
    new_job: MakeJob, tuning: dict[str, Any]
) -> None:
    job = new_job(tuning, valid_metrics=NAMES, valid_rows=4, select_best_by="chrf")
    manifest = job.train()
    lines = [line for line in job.log() if line["kind"] == "valid"]
    answers = job.answers()
    assert tuple(line["step"] for line in lines) == tuple(sorted(answers)) == STEPS
    rows = [[line["id"] for line in rows] for rows in answers.values()]
    assert rows == [rows[0]] * len(STEPS)
    assert len(set(rows[0])) == 4
    assert set(rows[0]) < {one.id for one in documents(6)}
    for line in lines:
        assert list(line)[:5] == ["kind", "step", "loss", "token_accuracy", "tokens"]
        assert list(line)[5:] == ["rouge1", "rouge2", "rougeL", "rougeLsum", "chrf"]
        answered = answers[line["step"]]
        scores = score([row["prediction"] for row in answered], [row["reference"] for row in answered], NAMES)
        for name, values in scores.items():
            assert [row[name] for row in answered] == values
            assert line[name] == pytest.approx(sum(values) / 4)
    assert len({str(rows) for rows in answers.values()}) > 1  # training changes the answers
    later = [line for line in lines if line["step"]]
    best = max(later, key=lambda line: line["chrf"])
    assert (manifest["best_step"], manifest["chosen_by"], manifest["best_value"]) == (
        best["step"],
        "chrf",
        best["chrf"],
    )
    assert check_folder(job.run.stage("train")) == manifest
    assert {f"answers/step-{step:06d}.jsonl" for step in STEPS} <= set(manifest["files"])


def test_validation_values_are_logged(new_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    job = new_job(valid_metrics=["chrf"], valid_rows=2)
    job.train()
    log = capsys.readouterr().err
    for line in (line for line in job.log() if line["kind"] == "valid"):
        assert f"step {line['step']}: validation loss {line['loss']:.4f}, token accuracy" in log
        assert f", chrf {line['chrf']:.4f}\n" in log


def test_validation_loss_uses_the_same_few_rows_unless_all_are_requested(
    new_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    few, all_rows = new_job(name="few", valid=20), new_job(name="all", valid=20, valid_loss_rows="all")
    tokens = TokenDataset(few.run.tokens("valid"))
    for job, count in ((few, 8), (all_rows, 20)):
        assert job.train()["valid_loss_rows"] == count
        assert (f"the same {count} of 20 valid rows" in capsys.readouterr().err) == (count < 20)
        read = {line["tokens"] for line in job.log() if line["kind"] == "valid"}
        assert len(read) == 1, "the same rows at every validation"
        assert (read == {tokens.trained_tokens(range(20))}) == (count == 20)


def test_valid_rows_above_the_number_of_rows_means_all(new_job: MakeJob) -> None:
    job = new_job(valid_metrics=["chrf"])
    job.train()
    assert [len(rows) for rows in job.answers().values()] == [6] * 4


def test_resume_removes_answers_of_later_steps(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(valid_metrics=["chrf"], keep_checkpoints=9)
    job.train()
    before = job.answers()
    assert tuple(before) == STEPS
    (job.run.stage("train") / "manifest.json").unlink()
    for step in (4, 6):
        shutil.rmtree(job.run.checkpoint(step))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate_gradients", None)  # fails at the first step
        with pytest.raises(TypeError):
            job.train()
    assert job.answers() == {step: before[step] for step in (0, 2)}
    job.train()
    assert job.answers() == before


# --- the best checkpoint ---


@pytest.mark.parametrize(
    ("higher", "values", "best"),
    [
        (True, [0.1, 0.4, 0.3], 1),
        (False, [0.1, 0.4, 0.05], 2),
        (True, [0.4, 0.4, 0.1], 0),
        (False, [0.1, 0.1, 0.4], 0),
        (True, [-3.0, -2.0, -4.0], 1),
        (True, [0.0, 0.0], 0),
        (True, [0.1, math.inf, math.nan, None, 0.2], 4),
        (False, [5.0, -math.inf, math.nan, None, 4.0], 4),
        (True, [math.nan, None, math.inf], None),
        (False, [-math.inf, 7.0], 1),
    ],
)
def test_the_first_best_finite_value_is_preferred(higher: bool, values: list[float | None], best: int | None) -> None:
    selected: tuple[int, float] | None = None
    for step, value in enumerate(values):
        if is_better(value, selected[1] if selected else None, higher=higher):
            selected = (step, float(value or 0))
    assert (selected[0] if selected else None) == best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "scores", "step", "value"),
    [
        ("loss", [0.0, 0.1, 0.9, 0.9], 2, 1.0),
        ("chrf", [1.0, 0.1, 0.9, 0.9], 4, 0.9),  # the earlier of equal values; step 0 is not a checkpoint
        ("token_accuracy", [0.0, 0.1, 0.2, 0.3], 2, 0.5),
        ("mine:words", [0.0, 9.0, 7.0, 8.0], 4, 7.0),  # lower is better
    ],
)
def test_select_best_by_a_metric(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch, by: str, scores: list[float], step: int, value: float
) -> None:
    metric = by if by in ("chrf", "mine:words") else "chrf"
    job = new_job(valid_metrics=[metric], select_best_by=by, keep_checkpoints=1)
    write_metric(job, "def words(p, r): return [0] * len(p)\nwords.higher_is_better = False\n")
    scripted(monkeypatch, [9.0, 1.0, 2.0, 3.0], scores)
    manifest = job.train()
    assert (manifest["best_step"], manifest["chosen_by"], manifest["best_value"]) == (step, by, value)
    assert job.steps == sorted({step, 6})
    assert read_json(job.run.checkpoint(6) / "state.json")["best_value"] == value


def test_new_best_step_by_a_metric_is_saved_between_two_intervals(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(
        valid_metrics=["chrf"], select_best_by="chrf", valid_every_steps=1, save_every_steps=6, keep_checkpoints=1
    )
    scripted(monkeypatch, [1.0] * 7, [0.0, 0.2, 0.1, 0.4, 0.3, 0.1, 0.1])
    assert job.train()["best_step"] == 3
    assert job.steps == [3, 6]


def test_failing_custom_metric_selects_nothing_and_does_not_end_training(
    new_job: MakeJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(valid_metrics=["mine:words"], select_best_by="mine:words")
    # The module of a custom metric is reloaded for each call, so the validations are counted outside of it.
    monkeypatch.setattr("builtins.validations_done", calls := [], raising=False)
    write_metric(job, "import builtins\ndef words(p, r):\n    done = builtins.validations_done\n    done.append(1)\n"
              "    return [float('nan') if len(done) == 4 else float(len(done))] * len(p)\n")  # fmt: skip
    manifest = job.train()
    assert len(calls) == 4
    assert (manifest["best_step"], manifest["best_value"]) == (4, 3.0)
    values = {line["step"]: line.get("mine:words") for line in job.log() if line["kind"] == "valid"}
    assert values == {0: 1.0, 2: 2.0, 4: 3.0, 6: None}
    assert "step 6: mine:words could not be computed" in capsys.readouterr().err
    assert "mine:words" not in job.answers()[6][0]


def test_mean_of_huge_finite_values_is_finite(new_job: MakeJob) -> None:
    job = new_job(valid_metrics=["mine:words"], max_steps=2)
    write_metric(job, "def words(p, r): return [1.7e308] * len(p)\n")
    job.train()
    assert [line["mine:words"] for line in job.log() if line["kind"] == "valid"] == [pytest.approx(1.7e308)] * 2


def test_custom_metric_that_fails_before_the_first_step_is_an_error(new_job: MakeJob) -> None:
    job = new_job(valid_metrics=["mine:words"])
    write_metric(job, "def words(p, r): return [float('nan')] * len(p)\n")
    with pytest.raises(RecipeError) as caught:
        job.train()
    assert "nan" in str(caught.value)
    assert [line for line in job.log() if line["kind"] == "step"] == []


# --- training does not change ---


@BOTH
def test_generating_answers_does_not_change_the_trained_weights(
    new_job: MakeJob, finished_job: MakeJob, tuning: dict[str, Any]
) -> None:
    every = {"save_every_steps": 1, "keep_checkpoints": 9}
    without_answers = finished_job(tuning, valid_every_steps=6, **every)
    with_answers = new_job(tuning, valid_every_steps=1, valid_metrics=["chrf", "mine:words"], **every)
    write_metric(with_answers, "import random, torch\ndef words(p, r):\n    torch.manual_seed(7); random.seed(7)\n"
               "    return torch.rand(len(p)).tolist()\n")  # fmt: skip
    with_answers.train()
    assert with_answers.steps == without_answers.steps == [1, 2, 3, 4, 5, 6]
    for step in with_answers.steps:
        one, other = without_answers.result(step), with_answers.result(step)
        assert [name for name in one if one[name] != other[name]] in (["state"], ["state", "model/tunesmith.json"])
    losses = [[line["loss"] for line in run.log() if line["kind"] == "step"] for run in (without_answers, with_answers)]
    assert losses[0] == losses[1]


def test_generating_answers_keeps_random_state_and_train_mode(
    new_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(valid_metrics=["chrf"])
    predict, models = validate.predict, []

    def check_state(model: Any, *given: Any, **settings: Any) -> Any:
        before = (torch.get_rng_state().tolist(), random.getstate())
        yield from predict(model, *given, **settings)
        assert (torch.get_rng_state().tolist(), random.getstate()) == before
        models.append(model)

    modes: list[bool] = []
    accumulate = loop.accumulate_gradients

    def record_mode(setup: Any, *given: Any) -> float:
        modes.append(setup.model.training)
        return accumulate(setup, *given)

    monkeypatch.setattr(loop, "accumulate_gradients", record_mode)
    monkeypatch.setattr(validate, "predict", check_state)
    job.train()
    assert len(models) == len(STEPS)
    assert modes == [True] * 6


# --- out of memory ---


class LimitedMemory:
    """Lets forward passes of more than `tokens` tokens per row run out of memory while answers are generated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
        self.failed = 0
        real = validate.predict

        def answers(model: Any, *given: Any, **settings: Any) -> Any:
            def check(module: Any, args: Any, asked: dict[str, Any]) -> None:
                if asked["input_ids"].shape[1] > tokens:
                    self.failed += 1
                    raise torch.OutOfMemoryError("CUDA out of memory")

            hook = model.register_forward_pre_hook(check, with_kwargs=True)
            try:
                yield from real(model, *given, **settings)
            finally:
                hook.remove()

        monkeypatch.setattr(validate, "predict", answers)


def test_oom_while_answering_fails_rows_but_not_training(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unlimited = finished_job(valid_metrics=["exact_match", "chrf"], select_best_by="chrf")
    job = new_job(valid_metrics=["exact_match", "chrf"], select_best_by="chrf")
    lengths = [len(line["prompt"]) for line in unlimited.answers()[0]]
    limit = LimitedMemory(monkeypatch, 0)
    manifest = job.train()
    assert limit.failed >= 2 * len(lengths) - 1  # batches are halved down to one prompt
    assert manifest["steps"] == 6
    assert manifest["best_step"] == 6  # nothing was measured, so the last step is the best
    assert not any("chrf" in line for line in read_jsonl(job.run.metrics))
    for rows in job.answers().values():
        assert all(row["error"] for row in rows)
        assert all((row["prediction"], row["chrf"], row["exact_match"]) == ("", None, None) for row in rows)
    assert "6 of 6 valid rows have no answer" in capsys.readouterr().err
    for step in (4, 6):
        name = "model/adapter_model.safetensors"
        assert job.result(step)[name] == unlimited.result(step)[name]


def test_oom_for_some_prompts_changes_no_other_answer(
    new_job: MakeJob, finished_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"valid_metrics": ["chrf"]}
    unlimited, job = finished_job(**settings), new_job(**settings)
    real, calls = validate.predict, []

    def answers(model: Any, questions: Any, *given: Any, **more: Any) -> Any:
        calls.append(1)
        *_, a, b, c, _ = questions.prompts[
            2
        ]  # the end of the prompt, without the last token, which slots read with the first new token

        def check(module: Any, args: Any, asked: dict[str, Any]) -> None:
            if any((a, b, c) in zip(row, row[1:], row[2:], strict=False) for row in asked["input_ids"].tolist()):
                raise MemoryError

        hook = model.register_forward_pre_hook(check, with_kwargs=True)
        yield from real(model, questions, *given, **more)
        hook.remove()

    monkeypatch.setattr(validate, "predict", answers)
    job.train()
    for step, rows in job.answers().items():
        failed = [index for index, row in enumerate(rows) if row["error"] is not None]
        assert 2 in failed
        assert len(failed) < len(rows)
        rest = [index for index in range(len(rows)) if index not in failed]
        assert [rows[index] for index in rest] == [unlimited.answers()[step][index] for index in rest]


# --- inputs ---


def test_decoding_and_metrics_are_inputs_only_if_answers_are_generated(new_job: MakeJob) -> None:
    plain, asking = new_job(name="plain"), new_job(name="asking", valid_metrics=["mine:words"])
    write_metric(plain, "def words(p, r): return [0] * len(p)\n")

    def changed(job: Job, **evaluate: Any) -> bool:
        other = job.recipe.evaluate.model_copy(update=evaluate)
        return inputs(job.recipe.model_copy(update={"evaluate": other}), job.run) != inputs(job.recipe, job.run)

    for change in ({"max_new_tokens": 7}, {"beams": 2}):
        assert (changed(plain, **change), changed(asking, **change)) == (False, True)
    for change in ({"rows": 3}, {"database": "x.db"}):
        assert (changed(plain, **change), changed(asking, **change)) == (False, False)
    before = [inputs(job.recipe, job.run) for job in (plain, asking)]
    write_metric(plain, "def words(p, r): return [1] * len(p)\n")
    assert [inputs(job.recipe, job.run) == old for job, old in zip((plain, asking), before, strict=True)] == [
        True,
        False,
    ]


def test_database_is_an_input_if_execution_is_measured(new_job: MakeJob, tmp_path: Path) -> None:
    job = new_job(valid_metrics=["execution"])
    evaluate = job.recipe.evaluate.model_copy(update={"database": "x.db"})
    recipe = job.recipe.model_copy(update={"evaluate": evaluate})
    with pytest.raises(DataError) as caught:
        train(recipe, job.run)
    assert "x.db" in str(caught.value)
    (tmp_path / "x.db").write_bytes(b"one")
    before = inputs(recipe, job.run)
    (tmp_path / "x.db").write_bytes(b"two")
    assert inputs(recipe, job.run) != before
