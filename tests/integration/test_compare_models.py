"""`compare A B ...`: runs by their stored scores, other models and endpoints by their answers to the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.endpoint import choice, endpoint
from tests.support.tiny import THINKING, recipe, save_model

from tunesmith import run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.errors import DataError
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate import model_scores
from tunesmith.evaluate.run_rows import RunRows

DATA = {
    "source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{question}", "response": "{answer}",
    "split": {"valid": 0.15, "test": 0.2},
}  # fmt: skip
EVALUATE = {"metrics": ["rougeL", "perplexity"], "primary": "rougeL", "rows": 10, "max_new_tokens": 6}


def train(folder: Path, model: Path, name: str, steps: int, **changes: Any) -> RunDir:
    rate = {"learning_rate": 0.01, "max_steps": steps, "epochs": 100, "examples_per_step": 8, "save_every_steps": 6}
    sections = {"evaluate": EVALUATE, "data": DATA, "train": rate, **changes}
    return run_recipe(recipe(folder, model, **sections), out=folder / name)


@pytest.fixture
def runs(tmp_path: Path, tiny: Path) -> tuple[RunDir, RunDir]:
    return train(tmp_path, tiny, "a", 2), train(tmp_path, tiny, "b", 12)


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    code = run_command(app, ["compare", *map(str, arguments), "--json"])
    printed = json.loads(capsys.readouterr().out)
    return printed if code == 0 else (code, printed["error"]["code"])


def test_runs_and_models_are_compared_pairwise(
    runs: tuple[RunDir, RunDir], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first, second = runs
    with monkeypatch.context() as patched:
        patched.setattr(RunRows, "ask", None)  # stored scores are enough for runs and their base
        result = compare(capsys, first, second, tiny, "--rows", 2)
        same = compare(capsys, f"run:{first}#2", first)["models"]
        assert same[0]["scores"] == same[1]["scores"]
    own = [read_json(run.verdict) for run in runs]
    assert [model["scores"]["perplexity"] for model in result["models"]] == [
        own[0]["metrics"]["perplexity"]["tuned"], own[1]["metrics"]["perplexity"]["tuned"],
        own[0]["metrics"]["perplexity"]["base"],
    ]  # fmt: skip
    names = [str(first), str(second), str(tiny)]
    assert [(pair["first"], pair["second"]) for pair in result["pairs"]] == [
        (names[0], names[1]), (names[0], names[2]), (names[1], names[2]),
    ]  # fmt: skip
    base_pair = result["pairs"][1]["metrics"]["rougeL"]
    assert base_pair["gain"] == pytest.approx(-own[0]["metrics"]["rougeL"]["gain"])
    assert base_pair["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert (result["rows"], result["confidence"], len(result["answers"])) == (10, 0.95, 2)

    other = save_model(tmp_path / "other", "gpt2", template=THINKING)
    step = min(int(path.name.removeprefix("step-")) for path in second.checkpoints.glob("step-*"))
    checkpoint = f"run:{second}#{step}"
    assert step < 12
    result = compare(capsys, checkpoint, other, "--on", first)
    assert set(result["pairs"][0]["metrics"]) == {"rougeL"}  # another chat template: no comparable likelihood
    assert result["pairs"][0]["primary"]["confidence"] == 0.95
    before = {path: path.stat().st_mtime_ns for path in (first.path / "comparisons").rglob("*") if path.is_file()}
    monkeypatch.setattr(RunRows, "ask", None)
    assert compare(capsys, checkpoint, other, "--on", first) == result
    assert {path: path.stat().st_mtime_ns for path in before} == before

    code = run_command(app, ["compare", str(first), str(second), "--rows", "3"])
    out = capsys.readouterr().out
    assert code == 0
    assert f"{second} is" in out or "does not show whether" in out
    assert out.count("reference") == 3

    assert run_command(app, ["compare", str(first), str(second), str(tiny), "--html"]) == 0
    assert capsys.readouterr().out.strip() == str(first.comparison_page)
    page = first.comparison_page.read_text()
    assert all(f'<th scope="col">{name}</th>' in page for name in names)


def test_another_template_gets_its_own_prompt(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(tmp_path, tiny, "a", 2)
    reworded = train(tmp_path, tiny, "b", 2, data={**DATA, "prompt": "Please: {question}"})
    result = compare(capsys, first, reworded)  # by stored scores, as the rows are the same
    assert not (first.path / "comparisons").exists()
    assert set(result["pairs"][0]["metrics"]) == {"rougeL"}
    shorter = train(tmp_path, tiny, "c", 3, evaluate={**EVALUATE, "max_new_tokens": 3})
    result = compare(capsys, first, shorter)  # asked again with the limit of the first
    [folder] = (first.path / "comparisons").iterdir()
    assert len(list(read_jsonl(folder / "generations.jsonl"))) == 10


def test_rows_that_changed_since_prepare_cannot_fill_another_template(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, tiny, "a", 2)
    other = train(
        tmp_path, tiny, "b", 2, data={**DATA, "prompt": "Please: {question}"},
        evaluate={**EVALUATE, "max_new_tokens": 3},
    )  # fmt: skip
    rows = tmp_path / "rows.jsonl"
    lines = [{**json.loads(line), "answer": ""} for line in rows.read_text().splitlines()]  # no longer usable
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert compare(capsys, first, other) == (DataError.exit_code, "not-comparable")


def test_a_folder_named_base_is_not_the_base_of_the_run(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tmp_path, tiny, "a", 2)
    save_model(tmp_path / "base", "gpt2", template=THINKING)
    opened, open_model = [], model_scores.open_model

    def opening(*arguments: Any, **options: Any) -> Any:
        opened.append(options)
        return open_model(*arguments, **options)

    monkeypatch.setattr(model_scores, "open_model", opening)
    monkeypatch.chdir(tmp_path)
    compare(capsys, first, "base")
    assert [set(options) for options in opened] == [{"attention"}]


def test_an_endpoint_answers_the_rows(
    runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = runs
    answers = {line["prompt"]: line["reference"] for line in read_jsonl(run.evaluation("tuned") / "generations.jsonl")}
    refused = next(iter(answers))

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        prompt = body["messages"][-1]["content"]
        return (400, {"error": "too long"}) if prompt == refused else (200, choice(answers[prompt]))

    monkeypatch.setattr("tunesmith.core.verdict.MAX_FAILED_SHARE", 0.2)
    with endpoint(reply) as (url, requests):
        result = compare(capsys, run, f"{url}#large")
        assert compare(capsys, run, f"{url}#large") == result
    assert len(requests) == 10
    assert {(request["max_tokens"], request["temperature"], request["model"]) for request in requests} == {
        (6, 0.0, "large")
    }
    [pair] = result["pairs"]
    assert result["models"][1]["health"]["failed"] == pair["primary"]["failed"] == 1
    assert (pair["verdict"], pair["primary"]["tuned"]) == ("better", 1.0)


def test_wrong_comparisons_are_refused(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(capsys, tiny, "http://127.0.0.1:9/v1#m") == (2, "usage")  # no run gives the rows
    assert compare(capsys, tiny, tiny) == (2, "usage")
    assert compare(capsys, tiny, "--on", tmp_path) == (2, "usage")
    assert compare(capsys, tiny, "none/such", "--on", tmp_path) == (2, "not-a-run")
    assert compare(capsys, tiny, "x", "--html") == (2, "usage")
