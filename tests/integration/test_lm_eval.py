"""Tasks of lm-evaluation-harness guard a promotion. Skipped if the extra `lm-eval` is not installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith import run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.plan.run_plan import plan_run

is_installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not is_installed, reason="the extra `lm-eval` is not installed")
TASK = """\
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/colors.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{thing}} is"
doc_to_choice: "{{colors}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
COLORS = ["blue", "green", "red"]


def write_recipe(folder: Path, model: Path, **keys: Any) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "colors.yaml").write_text(TASK)
    rows = [{"thing": f"thing {number}", "colors": COLORS, "answer": number % 3} for number in range(20)]
    (folder / "tasks" / "colors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "colors", "folder": "tasks", "max_drop": 0.9, **keys}
    evaluate = {"metrics": ["rougeL"], "primary": "rougeL", "rows": 8, "max_new_tokens": 4, "lm_eval": [task]}
    train = {"learning_rate": 0.01, "max_steps": 2, "examples_per_step": 4}
    return recipe(folder, model, evaluate=evaluate, train=train)


@needs_harness
def test_task_is_guarded_and_its_rows_are_compared(tmp_path: Path, tiny: Path) -> None:
    run = run_recipe(write_recipe(tmp_path, tiny, rows=12, metric="acc_norm"), out=tmp_path / "run")
    verdict = read_verdict(run.verdict)
    [guard] = verdict.guards
    assert (guard.name, guard.max_drop) == ("acc_norm on colors", 0.9)
    result = verdict.also["colors"]
    assert (result.rows, list(result.metrics)) == (12, ["acc", "acc_norm"])
    for model, score in (("base", result.metrics["acc"].base), ("tuned", result.metrics["acc"].tuned)):
        rows = list(read_jsonl(run.set_evaluation("colors", model) / "scores.jsonl"))
        assert [row["id"] for row in rows] == [f"colors/{number}" for number in range(12)]
        assert sum(row["acc"] for row in rows) / 12 == pytest.approx(score)
    assert "colors" in run.report.read_text()


@needs_harness
@pytest.mark.parametrize(
    ("keys", "named"),
    [({"task": "colours", "name": "c"}, "`colors`"), ({"metric": "bleu"}, "acc, acc_norm")],
)
def test_wrong_task_is_refused_before_training(tmp_path: Path, tiny: Path, keys: dict[str, str], named: str) -> None:
    with raises(RecipeError, "lm-eval-task", named, where="evaluate.lm_eval.0"):
        plan_run(write_recipe(tmp_path, tiny, **keys), out=tmp_path / "run")


@needs_harness
def test_missing_data_is_refused_before_training(tmp_path: Path, tiny: Path) -> None:
    file = write_recipe(tmp_path, tiny)
    (tmp_path / "tasks" / "colors.jsonl").unlink()
    with raises(RecipeError, "lm-eval-task", "colors"):
        run_recipe(file, out=tmp_path / "run")
    assert not RunDir(tmp_path / "run").metrics.exists()


def test_missing_package_is_reported_before_training(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with raises(RecipeError, "missing-package", "lm-eval", where="evaluate.lm_eval"):
        run_recipe(write_recipe(tmp_path, tiny), out=tmp_path / "run")
    assert not RunDir(tmp_path / "run").metrics.exists()
