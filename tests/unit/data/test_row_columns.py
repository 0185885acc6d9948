"""The columns of rows: as the run stored them, or else from the sources, with values as JSON has them."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet
import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.core.files import write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.row_columns import row_columns, source_columns, splits_with_columns
from tunesmith.recipe.schema import Recipe


def _recipe(source: str = "rows.jsonl", **train: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"}, "tuning": {"method": "full"},
        "train": {"learning_rate": 1e-4, **train},
        "data": {"source": {"file": source}, "task": "completion", "prompt": "{q}", "response": "{a}"},
        "evaluate": {"metrics": ["exact_match", "mine:f"], "primary": "exact_match"},
    })  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    lines = [{"q": f"ask {n}", "a": "yes", "more": {"n": n}} for n in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = RunDir(tmp_path / "run")
    write_json(made.environment, {"recipe_folder": ".."})
    return made


def test_stored_columns_are_read_before_the_source(run: RunDir, tmp_path: Path) -> None:
    found = row_columns(_recipe(), run, "test", {2, 4})
    assert found == {n: {"q": f"ask {n}", "a": "yes", "more": {"n": n}} for n in (2, 4)}
    run.columns("test").parent.mkdir(parents=True)
    write_jsonl(run.columns("test"), [{"row": n, "columns": {"q": "stored"}} for n in range(1, 6)])
    assert row_columns(_recipe(), run, "test", {2}) == {2: {"q": "stored"}}
    (tmp_path / "rows.jsonl").unlink()
    assert row_columns(_recipe(), run, "test", {2}) == {2: {"q": "stored"}}
    with raises(DataError, "no-columns", "rows.jsonl", where=str(run)):
        row_columns(_recipe(), run, "valid", {2})


def test_source_with_fewer_rows_is_refused(run: RunDir, tmp_path: Path) -> None:
    with raises(DataError, "no-columns", "9"):
        list(source_columns(_recipe(), tmp_path, {1, 9}))


def test_values_are_those_of_json(tmp_path: Path) -> None:
    values = {"q": ["x"], "a": [0.1], "price": [Decimal("1.50")], "none": [float("nan")], "many": [float("inf")],
              "list": [[1, 2]], "true": [True]}  # fmt: skip
    arrow.parquet.write_table(arrow.table(values), tmp_path / "rows.parquet")
    [(number, columns)] = source_columns(_recipe("rows.parquet"), tmp_path, {1})
    assert number == 1
    assert columns == {
        "q": "x", "a": 0.1, "price": "1.50", "none": None, "many": "inf", "list": [1, 2], "true": True
    }  # fmt: skip
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns


def test_only_splits_with_such_a_metric_are_stored(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(p, r, rows): return []\ndef g(p, r): return []\n")
    assert splits_with_columns(_recipe(), tmp_path) == ["test"]
    assert splits_with_columns(_recipe(valid_metrics=["mine:g"]), tmp_path) == ["test"]
    assert splits_with_columns(_recipe(valid_metrics=["mine:f"]), tmp_path) == ["valid", "test"]
