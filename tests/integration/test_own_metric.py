"""A custom metric through a whole run: checked before training, scored, compared, guarded, reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith import plan_run, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl, write_jsonl
from tunesmith.scoring.metric import Metric
from tunesmith.scoring.metrics import METRICS

METRIC = "def words(p, r):\n    return [len(one.split()) / {per} for one in p]\nwords.higher_is_better = False\n"


def test_a_custom_metric_decides_and_is_scored_again_after_its_file_changes(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "brevity.py").write_text(METRIC.format(per=1))
    settings = {
        "metrics": ["rougeL", "brevity:words"], "primary": "brevity:words", "rows": 8, "max_new_tokens": 6,
        "guards": [{"metric": "brevity:words", "max_drop": 50}],
    }  # fmt: skip
    file = recipe(tmp_path, tiny, evaluate=settings, train={"learning_rate": 0.01, "max_steps": 2})
    run = run_recipe(file, out=tmp_path / "run")
    for name in ("base", "tuned"):
        answers = {line["id"]: line["prediction"] for line in read_jsonl(run.evaluation(name) / "generations.jsonl")}
        scored = {line["id"]: line["brevity:words"] for line in read_jsonl(run.evaluation(name) / "scores.jsonl")}
        assert scored == {row: len(text.split()) for row, text in answers.items()}
    first = read_json(run.verdict)
    assert first["primary"]["metric"] == "brevity:words"
    assert first["primary"]["higher_is_better"] is False
    assert first["primary"]["gain"] == pytest.approx(first["primary"]["base"] - first["primary"]["tuned"])
    report = run.report.read_text(encoding="utf-8")
    assert "words" in report
    assert "lower is better" in report

    run_recipe(file, out=tmp_path / "run")
    assert read_json(run.verdict) == first
    (tmp_path / "brevity.py").write_text(METRIC.format(per=2))
    run_recipe(file, out=tmp_path / "run")
    assert read_json(run.verdict)["primary"]["base"] == pytest.approx(first["primary"]["base"] / 2)


def test_a_metric_gets_the_columns_of_the_rows(tmp_path: Path, tiny: Path) -> None:
    """In validation and evaluation, also after the source is gone."""
    metric = "def tree(predictions, references, rows):\n    return [row['tree'] for row in rows]\n"
    (tmp_path / "trees.py").write_text(metric)
    settings = {"metrics": ["exact_match", "trees:tree"], "primary": "exact_match", "rows": 8, "max_new_tokens": 2}
    train = {"learning_rate": 0.01, "max_steps": 1, "valid_metrics": ["trees:tree"]}
    file = recipe(tmp_path, tiny, evaluate=settings, train=train)
    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    run = run_recipe(file, out=tmp_path / "run")

    def differences(name: str) -> list[float]:
        numbers = {line["id"]: line["row"] for line in read_jsonl(run.evaluation("tuned") / "generations.jsonl")}
        found = {numbers[line["id"]]: line[name] for line in read_jsonl(run.evaluation("tuned") / "scores.jsonl")}
        return [value - rows[number - 1]["tree"] for number, value in found.items()]

    assert differences("trees:tree") == [0.0] * 8
    means = [line["trees:tree"] for line in read_jsonl(run.metrics) if line["kind"] == "valid"]
    numbers = [line["row"] for line in read_jsonl(run.examples("valid"))]
    assert means[0] == pytest.approx(sum(rows[number - 1]["tree"] for number in numbers) / len(numbers))
    assert len(list(read_jsonl(run.columns("test")))) == len(list(read_jsonl(run.examples("test"))))

    (tmp_path / "rows.jsonl").unlink()
    file.write_text(file.read_text().replace("rows: 8", "rows: 7"))
    run_recipe(file, out=tmp_path / "run")
    assert differences("trees:tree") == [0.0] * 7


def test_the_best_of_several_references_counts(tmp_path: Path, tiny: Path) -> None:
    """The answers, the scores, the means of validation and the report use the references, and training does not."""
    settings = {"metrics": ["exact_match", "bleu"], "primary": "exact_match", "rows": 8, "max_new_tokens": 6}
    train = {"learning_rate": 0.01, "max_steps": 2, "valid_metrics": ["rougeL"]}
    file = recipe(tmp_path, tiny, evaluate=settings, train=train)
    plain = run_recipe(file, out=tmp_path / "plain")
    given = {line["row"]: line["prediction"] for line in read_jsonl(plain.evaluation("base") / "generations.jsonl")}
    rows = list(read_jsonl(tmp_path / "rows.jsonl"))
    for number, row in enumerate(rows, 1):
        row["right"] = [row["answer"], given.get(number, "no answer")] if number % 4 else []
    write_jsonl(tmp_path / "rows.jsonl", rows)
    text = file.read_text().replace('  response: "{answer}"', "  response: '{answer}'")
    file.write_text(text.replace("  task: chat\n", "  task: chat\n  references: right\n"))
    run = run_recipe(file, out=tmp_path / "run")
    for name in ("base", "tuned"):
        lines = [list(read_jsonl(folder.evaluation(name) / "generations.jsonl")) for folder in (plain, run)]
        assert [line["prediction"] for line in lines[0]] == [line["prediction"] for line in lines[1]]
    expected = {}
    for line in read_jsonl(run.evaluation("base") / "generations.jsonl"):
        expected[line["id"]] = float(line["row"] % 4 > 0)
        answer = rows[line["row"] - 1]["answer"]
        assert line["reference"] == ([answer, line["prediction"]] if line["row"] % 4 else answer)
    assert {line["id"]: line["exact_match"] for line in read_jsonl(run.evaluation("base") / "scores.jsonl")} == expected
    assert set(expected.values()) == {0.0, 1.0}
    stored = read_json(run.verdict)["corpus"]["bleu"]
    assert stored["answers"] == 8
    assert stored["signature"].startswith("nrefs:var|")
    assert stored["base"] > read_json(plain.verdict)["corpus"]["bleu"]["base"]
    [answers] = [path for path in run.path.glob("train/answers/step-*0.jsonl")]
    assert any(isinstance(line["reference"], list) for line in read_jsonl(answers))
    assert "(2) " in run.report.read_text(encoding="utf-8")


def test_a_new_built_in_metric_is_one_row_of_the_table(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def characters(predictions: Sequence[str], *_: Any) -> list[float]:
        return [float(len(text)) for text in predictions]

    new = Metric("characters", "letters written", characters, higher_is_better=False, is_share=False)
    monkeypatch.setitem(METRICS, new.name, new)
    settings = {"metrics": ["characters"], "primary": "characters", "rows": 8, "max_new_tokens": 6}
    train = {"learning_rate": 0.01, "max_steps": 2, "valid_metrics": ["characters"], "select_best_by": "characters"}
    run = run_recipe(recipe(tmp_path, tiny, evaluate=settings, train=train), out=tmp_path / "run")
    primary = read_json(run.verdict)["primary"]
    assert primary["higher_is_better"] is False
    assert primary["gain"] == pytest.approx(primary["base"] - primary["tuned"])
    means = {line["step"]: line["characters"] for line in read_jsonl(run.metrics) if line["kind"] == "valid"}
    assert means[run.manifest("train")["best_step"]] == min(means.values())
    report = run.report.read_text(encoding="utf-8")
    assert "letters written" in report
    assert "lower is better" in report


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluate": {"metrics": ["absent:words"], "primary": "absent:words"}},
        {"train": {"learning_rate": 0.01, "valid_metrics": ["absent:words"]}},
    ],
    ids=["evaluate", "train"],
)
def test_a_wrong_custom_metric_is_reported_before_training(
    tmp_path: Path, tiny: Path, sections: dict[str, Any]
) -> None:
    file = recipe(tmp_path, tiny, **sections)
    for act in (plan_run, lambda path: run_recipe(path, out=tmp_path / "run")):
        with raises(RecipeError, "custom-metric-not-found", "absent"):
            act(file)
    assert not (tmp_path / "run" / "prepare").exists()
