"""References that a metric refuses, and metrics that fail, are found before training, with the row."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError, RecipeError
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


def _acts(folder: Path) -> tuple[Callable[[Path], object], ...]:
    return plan_run, lambda path: run_recipe(path, out=folder / "run", until="prepare")


def test_a_reference_that_is_no_json_is_named_by_file_and_line(tmp_path: Path, tiny: Path) -> None:
    path = _write(tmp_path, tiny, ['{"k": "one"}'] * 9 + ["{'k': 'moon'}"], "json_field_f1")
    for act in _acts(tmp_path):
        with pytest.raises(DataError, match="is not JSON") as refused:
            act(path)
        assert refused.value.where == "rows.jsonl:16"
    assert not (tmp_path / "run" / "prepare").exists(), "a mended row must not meet a prepared run"


def test_a_query_that_does_not_run_is_named_by_file_and_line(tmp_path: Path, tiny: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as database:
        database.execute("CREATE TABLE items (name TEXT)")
    path = _write(tmp_path, tiny, ["SELECT name FROM items"] * 12 + ["SELECT price FROM items"], "execution")
    text = path.read_text().replace("evaluate:\n", "evaluate:\n  database: shop.sqlite\n")
    path.write_text(text)
    for act in _acts(tmp_path):
        with pytest.raises(DataError, match="price") as refused:
            act(path)
        assert refused.value.where == "rows.jsonl:19"


def test_references_of_valid_rows_are_read_for_valid_metrics(tmp_path: Path, tiny: Path) -> None:
    path = _write(tmp_path, tiny, ["plain text"], "rougeL", valid_metrics=["json_field_f1"])
    with pytest.raises(DataError, match="is not JSON") as refused:
        plan_run(path)
    assert refused.value.where == "rows.jsonl:5"


def test_plan_warns_of_references_it_had_no_time_to_check(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, tiny, [json.dumps({"k": i}) for i in range(40)], "json_field_f1")
    monkeypatch.setattr("tunesmith.plan.run_plan._REHEARSAL_SECONDS", 0.0)
    assert plan_run(path).warnings == (), "eight are read, and two will be answered"
    [told] = plan_run(path, ["evaluate.rows=20"]).warnings
    assert "8 of 20 test rows" in told


OWN = {
    "raises on one reference": ("[1 / (r != 'two') for r in rs]", "division by zero.*rows.jsonl:10"),
    "raises on an empty answer": ("[float(len(p.split()[0]) > 0) for p in ps]", "the answer ''.*rows.jsonl:"),
    "NaN": ("[float('nan') if r == 'two' else 1.0 for r in rs]", "returned nan.*rows.jsonl:10"),
    "too few values": ("[1.0 for _ in rs][1:]", "returned . values for . rows"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_metric_of_the_users_own_is_called_before_training(tmp_path: Path, tiny: Path, case: str) -> None:
    values, told = OWN[case]
    (tmp_path / "mine.py").write_text(f"def f(ps, rs):\n    return {values}\n")
    path = _write(tmp_path, tiny, ["one", "one", "one", "two"], "mine:f")
    for act in _acts(tmp_path):
        with pytest.raises(RecipeError, match=told):
            act(path)


def test_a_metric_that_needs_several_rows_is_not_refused(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import statistics as s\ndef f(ps, rs):\n    return [s.stdev(map(len, rs))] * len(ps)\n"
    )
    assert plan_run(_write(tmp_path, tiny, ["one", "three"], "mine:f")).counts["test"] == 2


def test_a_slow_metric_is_called_on_a_few_rows_only(tmp_path: Path, tiny: Path) -> None:
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
