"""Further held-out sets: answered and scored as the test rows are, guarded, and changed without training again."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith import Registry, run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.errors import DataError, RecipeError, VerdictRefused
from tunesmith.core.files import MANIFEST, check_folder, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict_reader import read_verdict

GENERAL = {
    "name": "general", "source": {"file": "general.jsonl"}, "task": "text", "text": "{text}",
    "metrics": ["token_accuracy", "perplexity"], "max_drop": 1e-6,
}  # fmt: skip
SAME = {
    "name": "same", "source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{question}", "response": "{answer}",
    "metrics": ["rougeL", "perplexity"], "rows": 60, "max_new_tokens": 8, "max_drop": 0.9,
}  # fmt: skip
METRICS = {"metrics": ["rougeL", "perplexity"], "primary": "perplexity", "rows": 8, "max_new_tokens": 8}


def write_recipe(folder: Path, model: Path, *sets: dict[str, Any], **changes: Any) -> Path:
    with (folder / "general.jsonl").open("w") as file:
        for number in range(12):
            file.write(json.dumps({"text": f"The {number}th dog and cat go to a blue house in the north."}) + "\n")
    changes = {"promote": {"model": "tiny"}, "evaluate": {**METRICS, "also": list(sets)}, **changes}
    return recipe(folder, model, **changes)


def test_sets_guard_the_promotion_and_change_without_training_again(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with raises(VerdictRefused, "verdict"):
        run_recipe(write_recipe(tmp_path, tiny, GENERAL), out=out)
    run = RunDir(out)
    stored = read_json(run.verdict)
    assert stored["verdict"] == "better"
    [guard] = stored["guards"]
    assert (guard["metric"], guard["set"], guard["passed"]) == ("token_accuracy", "general", False)
    assert any(reason.startswith("guard: token_accuracy on general") for reason in stored["reasons"])
    assert stored["also"]["general"]["rows"] == 12
    assert set(stored["also"]["general"]["metrics"]) == {"token_accuracy", "perplexity"}
    assert read_verdict(run.verdict).to_json() == stored
    assert Registry.default().alias_target("tiny", "staging") is None
    for model in ("base", "tuned"):  # likelihoods need no answers
        assert [file.name for file in run.set_evaluation("general", model).iterdir()] == ["scores.jsonl"]
    assert "general" in run.report.read_text()
    assert run_command(app, ["compare", str(out)]) == 0
    assert "on the 12 rows of general" in capsys.readouterr().out

    before = {stage: (run.stage(stage) / MANIFEST).read_bytes() for stage in ("prepare", "train")}
    prepared = (run.further_set("general").stage("prepare") / MANIFEST).stat()
    run_recipe(write_recipe(tmp_path, tiny, {**GENERAL, "max_drop": 0.99}, SAME), out=out)
    assert {stage: (run.stage(stage) / MANIFEST).read_bytes() for stage in before} == before
    assert (run.further_set("general").stage("prepare") / MANIFEST).stat().st_mtime_ns == prepared.st_mtime_ns
    verdict = read_verdict(run.verdict)
    assert [(guard.name, guard.passed) for guard in verdict.guards] == [
        ("token_accuracy on general", True),
        ("rougeL on same", True),
    ]
    assert Registry.default().alias_target("tiny", "staging") == 1
    assert verdict.also["same"].health["tuned"]["rows"] == verdict.also["same"].metrics["rougeL"].rows == 60
    check_folder(run.stage("evaluate"))
    for model in ("base", "tuned"):  # the rows of the set that are test rows have the scores of the test rows
        own = {line["id"]: line for line in read_jsonl(run.evaluation(model) / "scores.jsonl")}
        further = {line["id"]: line for line in read_jsonl(run.set_evaluation("same", model) / "scores.jsonl")}
        assert own.keys() < further.keys()
        for row, line in own.items():
            assert line["rougeL"] == further[row]["rougeL"]
            assert line["log_likelihood"] == pytest.approx(further[row]["log_likelihood"], rel=1e-5)


@pytest.mark.parametrize(("learning_rate", "passed"), [(1e-5, True), (0.3, False)])
def test_general_set_detects_forgetting(tmp_path: Path, tiny: Path, learning_rate: float, passed: bool) -> None:
    train = {"max_steps": 6, "examples_per_step": 4, "learning_rate": learning_rate}
    evaluate = {**METRICS, "also": [{"source": {"embedded": "general"}, "rows": 30}]}
    run = run_recipe(recipe(tmp_path, tiny, evaluate=evaluate, train=train), out=tmp_path / "run")
    verdict = read_verdict(run.verdict)
    [guard] = verdict.guards
    assert (guard.name, guard.passed) == ("loss on general", passed)
    assert set(verdict.also["general"].metrics) == {"loss", "token_accuracy"}


def test_training_rows_in_a_set_are_reported(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_recipe(write_recipe(tmp_path, tiny, SAME), out=tmp_path / "run", until="prepare")
    facts = run.further_set("same").manifest("prepare") or {}
    training = len(list(read_jsonl(run.examples("train"))))
    assert facts["counts"]["test"] == 60
    assert facts["copies"]["test"]["exact"] == training > 30
    assert f"{training} of 60 rows are training rows too" in capsys.readouterr().err
    data = {
        "source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{question}", "response": "{answer}",
        "leakage": "error", "split": {"valid": 0.15, "test": 0.2},
    }  # fmt: skip
    with raises(DataError, "leakage"):
        run_recipe(write_recipe(tmp_path, tiny, SAME, data=data), out=tmp_path / "strict", until="train")


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"source": {"file": "missing.jsonl"}}, DataError, "not-found"),
        ({"text": "{other}"}, DataError, "missing-column"),
        ({"text": "{text} " * 60}, RecipeError, "too-many-tokens"),
    ],
)
def test_a_wrong_set_is_refused_before_training(
    tmp_path: Path, tiny: Path, change: dict[str, Any], error: type[Exception], code: str
) -> None:
    """Also if it was added after `prepare`."""
    out = tmp_path / "run"
    file = write_recipe(tmp_path, tiny, {**GENERAL, **change, "max_tokens_per_example": 4000})
    with raises(error, code):
        run_recipe(file, out=out)
    assert not RunDir(out).metrics.exists()
    run_recipe(write_recipe(tmp_path, tiny), out=tmp_path / "later", until="prepare")
    with raises(error, code):
        run_recipe(
            write_recipe(tmp_path, tiny, {**GENERAL, **change, "max_tokens_per_example": 4000}), out=tmp_path / "later"
        )
    assert not RunDir(tmp_path / "later").metrics.exists()
