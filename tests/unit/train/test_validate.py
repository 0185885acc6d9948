"""Answers to valid rows are scored at every validation and may choose the checkpoint, and training does not notice."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.train.conftest import FULL, LORA, Start, Trained, documents

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import check_folder, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.inference.scorer import Scorer
from tunesmith.scoring.metrics import score
from tunesmith.train import loop, validate
from tunesmith.train.inputs import inputs
from tunesmith.train.loop import Measurement
from tunesmith.train.train import train

STEPS = (0, 2, 4, 6)
NAMES = ["rouge", "chrf"]


def own(made: Trained, body: str, name: str = "mine") -> None:
    """Write a metric of the user's own beside the recipe."""
    (made.run.path.parent / f"{name}.py").write_text(body)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float], scores: list[float]) -> None:
    """Let the validations find what is written here, one after another."""
    measured, scored = iter(losses), iter(scores)
    monkeypatch.setattr(
        validate,
        "measure",
        lambda setup, tokens, rows, seen: Measurement({"loss": next(measured), "token_accuracy": 0.5}, 10),
    )
    monkeypatch.setattr(Scorer, "score", lambda self, name, lines: [next(scored)] * len(lines))


# --- what is measured ---


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_every_validation_scores_answers_to_the_same_rows_and_keeps_them(start: Start, tuning: dict[str, Any]) -> None:
    made = start(tuning, valid_metrics=NAMES, valid_rows=4, select_best_by="chrf")
    manifest = made.go()
    lines = [line for line in made.log() if line["kind"] == "valid"]
    answers = made.answers()
    assert tuple(line["step"] for line in lines) == tuple(sorted(answers)) == STEPS
    rows = [[line["id"] for line in found] for found in answers.values()]
    assert rows == [rows[0]] * len(STEPS)
    assert len(set(rows[0])) == 4
    assert set(rows[0]) < {one.id for one in documents(6)}
    for line in lines:
        assert list(line)[:5] == ["kind", "step", "loss", "token_accuracy", "tokens"]
        assert list(line)[5:] == ["rouge1", "rouge2", "rougeL", "rougeLsum", "chrf"]
        found = answers[line["step"]]
        wanted = score([one["prediction"] for one in found], [one["reference"] for one in found], NAMES)
        for name, values in wanted.items():
            assert [one[name] for one in found] == values
            assert line[name] == pytest.approx(sum(values) / 4)
    assert len({str(found) for found in answers.values()}) > 1  # what is trained changes what is answered
    later = [line for line in lines if line["step"]]
    best = max(later, key=lambda line: line["chrf"])
    assert (manifest["best_step"], manifest["chosen_by"], manifest["best_value"]) == (
        best["step"],
        "chrf",
        best["chrf"],
    )
    assert check_folder(made.run.stage("train")) == manifest
    assert {f"answers/step-{step:06d}.jsonl" for step in STEPS} <= set(manifest["files"])


def test_what_was_measured_is_said(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    made = start(valid_metrics=["chrf"], valid_rows=2)
    made.go()
    said = capsys.readouterr().err
    for line in (line for line in made.log() if line["kind"] == "valid"):
        assert f"step {line['step']}: validation loss {line['loss']:.4f}, token accuracy" in said
        assert f", chrf {line['chrf']:.4f}\n" in said


def test_the_loss_is_measured_on_the_same_few_rows_unless_all_are_asked_for(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    few, everything = start(name="few", valid=20), start(name="all", valid=20, valid_loss_rows="all")
    tokens = TokenDataset(few.run.tokens("valid"))
    for made, count in ((few, 8), (everything, 20)):
        assert made.go()["valid_loss_rows"] == count
        assert (f"the same {count} of 20 valid rows" in capsys.readouterr().err) == (count < 20)
        read = {line["tokens"] for line in made.log() if line["kind"] == "valid"}
        assert len(read) == 1, "the same rows at every validation"
        assert (read == {tokens.trained_tokens(range(20))}) == (count == 20)


def test_more_rows_than_there_are_is_all_of_them(start: Start) -> None:
    made = start(valid_metrics=["chrf"])
    made.go()
    assert [len(found) for found in made.answers().values()] == [6] * 4


def test_a_run_that_goes_back_forgets_the_answers_of_later_steps(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = start(valid_metrics=["chrf"], keep_checkpoints=9)
    made.go()
    before = made.answers()
    assert tuple(before) == STEPS
    (made.run.stage("train") / "manifest.json").unlink()
    for step in (4, 6):
        shutil.rmtree(made.run.checkpoint(step))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate_gradients", None)
        with pytest.raises(TypeError):
            made.go()
    assert made.answers() == {step: before[step] for step in (0, 2)}
    made.go()
    assert made.answers() == before


# --- what is chosen ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "scores", "step", "value"),
    [
        ("loss", [0.0, 0.1, 0.9, 0.9], 2, 1.0),
        ("chrf", [1.0, 0.1, 0.9, 0.9], 4, 0.9),  # of equal ones the earlier, and the base is no checkpoint
        ("token_accuracy", [0.0, 0.1, 0.2, 0.3], 2, 0.5),
        ("mine:words", [0.0, 9.0, 7.0, 8.0], 4, 7.0),  # lower is better
    ],
)
def test_a_metric_may_choose_another_checkpoint_than_the_loss(
    start: Start, monkeypatch: pytest.MonkeyPatch, by: str, scores: list[float], step: int, value: float
) -> None:
    metric = by if by in ("chrf", "mine:words") else "chrf"
    made = start(valid_metrics=[metric], select_best_by=by, keep_checkpoints=1)
    own(made, "def words(p, r): return [0] * len(p)\nwords.higher_is_better = False\n")
    scripted(monkeypatch, [9.0, 1.0, 2.0, 3.0], scores)
    manifest = made.go()
    assert (manifest["best_step"], manifest["chosen_by"], manifest["best_value"]) == (step, by, value)
    assert made.steps == sorted({step, 6})
    assert read_json(made.run.checkpoint(6) / "state.json")["best_value"] == value


def test_an_improvement_by_the_metric_is_saved_between_two_intervals(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(
        valid_metrics=["chrf"], select_best_by="chrf", valid_every_steps=1, save_every_steps=6, keep_checkpoints=1
    )
    scripted(monkeypatch, [1.0] * 7, [0.0, 0.2, 0.1, 0.4, 0.3, 0.1, 0.1])
    assert made.go()["best_step"] == 3
    assert made.steps == [3, 6]


def test_a_metric_that_gives_no_number_never_chooses_and_ends_no_training(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(valid_metrics=["mine:words"], select_best_by="mine:words")
    # A module of the user's own is forgotten after every call, so the validations are counted here.
    monkeypatch.setattr("builtins.validations_done", calls := [], raising=False)
    own(made, "import builtins\ndef words(p, r):\n    done = builtins.validations_done\n    done.append(1)\n"
              "    return [float('nan') if len(done) == 4 else float(len(done))] * len(p)\n")  # fmt: skip
    manifest = made.go()
    assert len(calls) == 4
    assert (manifest["best_step"], manifest["best_value"]) == (4, 3.0)
    found = {line["step"]: line.get("mine:words") for line in made.log() if line["kind"] == "valid"}
    assert found == {0: 1.0, 2: 2.0, 4: 3.0, 6: None}
    assert "step 6: mine:words could not be computed and does not count" in capsys.readouterr().err
    assert "mine:words" not in made.answers()[6][0]


def test_values_of_any_size_have_a_mean(start: Start) -> None:
    made = start(valid_metrics=["mine:words"], max_steps=2)
    own(made, "def words(p, r): return [1.7e308] * len(p)\n")
    made.go()
    assert [line["mine:words"] for line in made.log() if line["kind"] == "valid"] == [pytest.approx(1.7e308)] * 2


def test_a_metric_that_fails_before_the_first_step_is_told_at_once(start: Start) -> None:
    made = start(valid_metrics=["mine:words"])
    own(made, "def words(p, r): return [float('nan')] * len(p)\n")
    with pytest.raises(RecipeError, match="gave nan for row 0"):
        made.go()
    assert [line for line in made.log() if line["kind"] == "step"] == []


# --- that training does not notice ---


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_with_and_without_answers_the_weights_of_every_step_are_the_same(
    start: Start, whole: Start, tuning: dict[str, Any]
) -> None:
    every = {"save_every_steps": 1, "keep_checkpoints": 9}
    silent = whole(tuning, valid_every_steps=6, **every)
    asked = start(tuning, valid_every_steps=1, valid_metrics=["chrf", "mine:words"], **every)
    own(asked, "import random, torch\ndef words(p, r):\n    torch.manual_seed(7); random.seed(7)\n"
               "    return torch.rand(len(p)).tolist()\n")  # fmt: skip
    asked.go()
    assert asked.steps == silent.steps == [1, 2, 3, 4, 5, 6]
    for step in asked.steps:
        one, other = silent.result(step), asked.result(step)
        assert [name for name in one if one[name] != other[name]] in (["state"], ["state", "model/tunesmith.json"])
    losses = [[line["loss"] for line in run.log() if line["kind"] == "step"] for run in (silent, asked)]
    assert losses[0] == losses[1]


def test_answering_draws_no_random_number_and_training_goes_on_in_train_mode(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(valid_metrics=["chrf"])
    real, seen = validate.predict, []

    def watched(model: Any, *given: Any, **settings: Any) -> Any:
        before = (torch.get_rng_state().tolist(), random.getstate())
        yield from real(model, *given, **settings)
        assert (torch.get_rng_state().tolist(), random.getstate()) == before
        seen.append(model)

    modes: list[bool] = []
    accumulate = loop.accumulate_gradients

    def noting(setup: Any, *given: Any) -> float:
        modes.append(setup.model.training)
        return accumulate(setup, *given)

    monkeypatch.setattr(loop, "accumulate_gradients", noting)
    monkeypatch.setattr(validate, "predict", watched)
    made.go()
    assert len(seen) == len(STEPS)
    assert modes == [True] * 6


# --- when memory does not suffice ---


class Scarce:
    """Memory for prompts of so many tokens, as long as answers are made."""

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


def test_a_lack_of_memory_fails_rows_and_never_the_training(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy = whole(valid_metrics=["exact_match", "chrf"], select_best_by="chrf")
    made = start(valid_metrics=["exact_match", "chrf"], select_best_by="chrf")
    lengths = [len(line["prompt"]) for line in roomy.answers()[0]]
    scarce = Scarce(monkeypatch, 0)
    manifest = made.go()
    assert scarce.failed >= 2 * len(lengths) - 1  # in halves, down to one prompt
    assert manifest["steps"] == 6
    assert manifest["best_step"] == 6  # nothing was measured, so the last step counts
    assert not any("chrf" in line for line in read_jsonl(made.run.metrics))
    for found in made.answers().values():
        assert all("memory does not suffice to answer one prompt" in line["error"] for line in found)
        assert all((line["prediction"], line["chrf"], line["exact_match"]) == ("", None, None) for line in found)
    assert "6 of 6 valid rows have no answer and are left out of the means: memory does not" in capsys.readouterr().err
    for step in (4, 6):
        name = "model/adapter_model.safetensors"
        assert made.result(step)[name] == roomy.result(step)[name]


def test_a_lack_of_memory_for_some_changes_no_other_answer(
    start: Start, whole: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"valid_metrics": ["chrf"]}
    roomy, made = whole(**settings), start(**settings)
    real, calls = validate.predict, []

    def answers(model: Any, questions: Any, *given: Any, **more: Any) -> Any:
        calls.append(1)
        *_, a, b, c, _ = questions.prompts[2]  # its end; in slots the last token is read with the first step

        def check(module: Any, args: Any, asked: dict[str, Any]) -> None:
            if any((a, b, c) in zip(row, row[1:], row[2:], strict=False) for row in asked["input_ids"].tolist()):
                raise MemoryError

        hook = model.register_forward_pre_hook(check, with_kwargs=True)
        yield from real(model, questions, *given, **more)
        hook.remove()

    monkeypatch.setattr(validate, "predict", answers)
    made.go()
    for step, found in made.answers().items():
        failed = [place for place, line in enumerate(found) if line["error"] is not None]
        assert 2 in failed
        assert len(failed) < len(found)
        rest = [place for place in range(len(found)) if place not in failed]
        assert [found[place] for place in rest] == [roomy.answers()[step][place] for place in rest]


# --- what it follows from ---


def test_decoding_and_what_metrics_read_count_only_where_answers_are_made(start: Start) -> None:
    plain, asking = start(name="plain"), start(name="asking", valid_metrics=["mine:words"])
    own(plain, "def words(p, r): return [0] * len(p)\n")

    def changed(made: Trained, **evaluate: Any) -> bool:
        other = made.recipe.evaluate.model_copy(update=evaluate)
        return inputs(made.recipe.model_copy(update={"evaluate": other}), made.run) != inputs(made.recipe, made.run)

    for change in ({"max_new_tokens": 7}, {"beams": 2}):
        assert (changed(plain, **change), changed(asking, **change)) == (False, True)
    for change in ({"rows": 3}, {"database": "x.db"}):
        assert (changed(plain, **change), changed(asking, **change)) == (False, False)
    before = [inputs(made.recipe, made.run) for made in (plain, asking)]
    own(plain, "def words(p, r): return [1] * len(p)\n")
    assert [inputs(made.recipe, made.run) == old for made, old in zip((plain, asking), before, strict=True)] == [
        True,
        False,
    ]


def test_the_database_counts_where_execution_is_measured(start: Start, tmp_path: Path) -> None:
    made = start(valid_metrics=["execution"])
    evaluate = made.recipe.evaluate.model_copy(update={"database": "x.db"})
    recipe = made.recipe.model_copy(update={"evaluate": evaluate})
    with pytest.raises(DataError, match="no such database"):
        train(recipe, made.run)
    (tmp_path / "x.db").write_bytes(b"one")
    before = inputs(recipe, made.run)
    (tmp_path / "x.db").write_bytes(b"two")
    assert inputs(recipe, made.run) != before
