"""Rejected references and failing metrics are found before training, with the row."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.plans import other_warnings
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.process_rows import read_recipe_rows
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan.run_plan import plan_run

SPLIT = {"source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{q}", "response": "{a}", "split": {"column": "s"}}


def _write(folder: Path, model: Path, answers: list[str], metric: str, **train: Any) -> Path:
    """Write a recipe whose rows 1 to 4 are train, 5 to 6 valid, and the rest test rows with these answers."""
    path = write_recipe(
        folder, model, data=SPLIT, train={"learning_rate": 0.01, "max_steps": 1, **train},
        evaluate={"metrics": [metric, "exact_match"], "primary": metric, "rows": 2, "max_new_tokens": 4},
    )  # fmt: skip
    texts = [answers[0]] * 6 + answers
    splits = ["train"] * 4 + ["valid"] * 2 + ["test"] * len(answers)
    rows = [{"q": f"ask {i}", "a": a, "s": s} for i, (a, s) in enumerate(zip(texts, splits, strict=True))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _commands(folder: Path) -> tuple[Callable[[Path], object], ...]:
    return plan_run, lambda path: run_recipe(path, out=folder / "run", until="prepare")


def test_reference_that_is_not_json_is_reported_with_its_line(tmp_path: Path, tiny: Path) -> None:
    path = _write(tmp_path, tiny, ['{"k": "one"}'] * 9 + ["{'k': 'moon'}"], "json_field_f1")
    for command in _commands(tmp_path):
        with raises(DataError, "reference-not-json", "moon", where="rows.jsonl:16"):
            command(path)
    assert not (tmp_path / "run" / "prepare").exists(), "a corrected row needs a new `prepare`"


@pytest.mark.parametrize("metric", ["tool_call", "tool_call_name", "tool_call_f1"])
def test_reference_without_a_tool_call_is_reported_with_its_line(tmp_path: Path, tiny: Path, metric: str) -> None:
    answers = ['{"name": "f", "arguments": {}}'] * 9 + ["It is noon."]
    path = _write(tmp_path, tiny, answers, metric)
    for command in _commands(tmp_path):
        with raises(DataError, "reference-not-tool-call", "noon", where="rows.jsonl:16"):
            command(path)


def test_reference_query_that_fails_is_reported_with_its_line(tmp_path: Path, tiny: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as database:
        database.execute("CREATE TABLE items (name TEXT)")
    path = _write(tmp_path, tiny, ["SELECT name FROM items"] * 12 + ["SELECT price FROM items"], "execution")
    text = path.read_text().replace("evaluate:\n", "evaluate:\n  database: shop.sqlite\n")
    path.write_text(text)
    for command in _commands(tmp_path):
        with raises(DataError, "reference-query-failed", "price", where="rows.jsonl:19"):
            command(path)


def test_references_of_valid_rows_are_checked_for_valid_metrics(tmp_path: Path, tiny: Path) -> None:
    path = _write(tmp_path, tiny, ["plain text"], "rougeL", valid_metrics=["json_field_f1"])
    with raises(DataError, "reference-not-json", where="rows.jsonl:5"):
        plan_run(path)


def test_plan_warns_about_references_that_it_had_no_time_to_check(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, tiny, [json.dumps({"k": i}) for i in range(40)], "json_field_f1")
    monkeypatch.setattr("tunesmith.plan.run_plan._REHEARSAL_SECONDS", 0.0)
    assert other_warnings(plan_run(path)) == [], "8 references are checked, and 2 rows will be answered"
    [warning] = other_warnings(plan_run(path, ["evaluate.rows=20"]))
    assert "json_field_f1" in warning
    assert "of 8 of" in warning


# What is wrong: (the values that the metric returns, values that the error names).
CUSTOM = {
    "raises on one reference": ("[1 / (r != 'two') for r in rs]", ("division by zero", "rows.jsonl:10")),
    "raises on an empty answer": ("[float(len(p.split()[0]) > 0) for p in ps]", ("''", "rows.jsonl:")),
    "NaN": ("[float('nan') if r == 'two' else 1.0 for r in rs]", ("nan", "rows.jsonl:10")),
    "too few values": ("[1.0 for _ in rs][1:]", ("values",)),
}


@pytest.mark.parametrize("case", CUSTOM)
def test_failing_custom_metric_is_found_before_training(tmp_path: Path, tiny: Path, case: str) -> None:
    values, named = CUSTOM[case]
    (tmp_path / "mine.py").write_text(f"def f(ps, rs):\n    return {values}\n")
    path = _write(tmp_path, tiny, ["one", "one", "one", "two"], "mine:f")
    for command in _commands(tmp_path):
        with raises(RecipeError, "custom-metric-failed", *named):
            command(path)


def test_custom_metric_that_fails_on_a_rows_columns_is_found_before_training(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def f(ps, rs, rows):\n    return [1.0 / (row['q'] != 'ask 9') for row in rows]\n"
    )
    path = _write(tmp_path, tiny, ["one", "one", "one", "two"], "mine:f")
    for command in _commands(tmp_path):
        with raises(RecipeError, "custom-metric-failed", "division by zero", "rows.jsonl:10"):
            command(path)


def test_sources_are_read_once_for_the_columns_of_all_splits_and_metrics(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = "def {}(ps, rs, rows):\n    return [float(row['s'] == '{}') for row in rows]\n"
    (tmp_path / "mine.py").write_text(metric.format("f", "test") + metric.format("g", "valid"))
    path = _write(tmp_path, tiny, ["one", "two"], "mine:f", valid_metrics=["mine:f", "mine:g"])
    reads = []
    monkeypatch.setattr(
        "tunesmith.data.row_columns.read_recipe_rows", lambda *where: reads.append(where) or read_recipe_rows(*where)
    )
    plan_run(path)
    assert len(reads) == 1


def test_custom_metric_that_needs_several_rows_passes(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import statistics as s\ndef f(ps, rs):\n    return [s.stdev(map(len, rs))] * len(ps)\n"
    )
    assert plan_run(_write(tmp_path, tiny, ["one", "three"], "mine:f")).rows.counts["test"] == 2


def test_slow_custom_metric_is_called_on_a_few_rows_only(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\ndef f(ps, rs):\n    time.sleep(0.4)\n"
        "    with pathlib.Path(__file__).with_name('calls').open('a') as calls:\n"
        "        print(len(rs), file=calls)\n    return [1.0] * len(ps)\n"
    )
    path = _write(tmp_path, tiny, [f"answer {i}" for i in range(99)], "mine:f")
    plan_run(path)
    calls = list(map(int, (tmp_path / "calls").read_text().split()))
    assert calls[:2] == [8, 8]
    assert sum(calls[1:]) < 99
