"""Warnings and errors about a dataset: control tokens, split sizes, empty splits, divided groups, double braces."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.errors import raises
from tests.support.tiny import CHATML, make_tokenizer, write_rows
from tests.support.tiny import recipe as write_recipe
from tests.unit.data.conftest import recipe

from tunesmith.core.errors import DataError
from tunesmith.data.dataset import Dataset, build_dataset, empty_splits, histogram
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]
Build = Callable[..., Dataset]


@pytest.fixture
def build(tmp_path: Path, tokenizer_folder: Path) -> Build:
    """Build a dataset from rows and settings of `data`."""

    def build_(rows: list[Row], **data: Any) -> Dataset:
        section = {
            "source": {"file": "own.jsonl"}, "task": "completion", "prompt": "{q}", "response": "{a}",
            "split": {"valid": 0.1, "test": 0.1}, **data,
        }  # fmt: skip
        recipe = load_recipe(write_recipe(tmp_path, tokenizer_folder, data=section))
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build_dataset(recipe, task_for(recipe.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)

    return build_


def rows(count: int, **more: Any) -> list[Row]:
    return [{"q": f"what is {n}", "a": f"it is {n}", **more} for n in range(count)]


def test_rows_that_contain_control_tokens_give_a_warning(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(60)
    assert build(lines).facts()["control_tokens"] == {"rows": 0}
    assert "control tokens" not in capsys.readouterr().err
    for line in lines[5:50:5]:
        line["a"] += "<|im_end|>"
    control_tokens = build(lines).facts()["control_tokens"]
    assert control_tokens == {"rows": 9, "token": "<|im_end|>", "first": "own.jsonl:6"}
    assert "warning: 9 rows" in capsys.readouterr().err


def test_template_that_writes_the_date_gives_a_warning(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer("{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    for date, is_warned in ((None, True), ("2026-05-01", False)):
        section = {"task": "chat", "prompt": "{question}", "response": "{answer}", "template_date": date}
        path = write_recipe(tmp_path, tokenizer_folder, data={"source": {"file": "rows.jsonl"}, **section})
        recipe = load_recipe(path)
        write_rows(tmp_path / "rows.jsonl")
        dataset = build_dataset(recipe, task_for(recipe.data, TokenizerAdapter(tokenizer)), folder=tmp_path)
        assert any("data.template_date" in remark for remark in dataset.remarks) == is_warned
        assert ("data.template_date" in capsys.readouterr().err) == is_warned


def test_split_that_deviates_from_its_fraction_gives_a_warning(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build(rows(200))
    assert "warning" not in capsys.readouterr().err
    # 60 % of the rows have the same prompt: the split that gets them exceeds its fraction by far.
    largest_splits = set()
    for seed in range(12):
        lines = [{**row, "q": f"hi {seed}" if n % 5 < 3 else row["q"]} for n, row in enumerate(rows(200))]
        dataset = build(lines)
        largest = max(("train", "valid", "test"), key=lambda name: len(dataset.used[name]))
        assert ("120 rows" in capsys.readouterr().err) == (largest != "train")
        largest_splits.add(largest)
    assert {"valid", "test"} & largest_splits


@pytest.mark.parametrize(
    ("lines", "split", "named"),
    [
        ([{"q": "same", "a": str(n)} for n in range(30)], {}, ("1 prompt", "data.split.column", "data.split.by")),
        ([{"q": f"x{n % 2}", "a": str(n)} for n in range(30)], {}, ("2 different prompts",)),
        (rows(30, db="one"), {"by": "db"}, ("1 value of `db`",)),
        (rows(30, fold="train"), {"column": "fold"}, ("test in the column `fold`",)),
        (rows(2), {}, ("more rows",)),
    ],
)
def test_empty_split_error_explains_the_reason(
    build: Build, lines: list[Row], split: Row, named: tuple[str, ...]
) -> None:
    chosen = split if "column" in split else {"valid": 0.1, "test": 0.1, **split}
    with raises(DataError, "empty-split", *named):
        build(lines, split=chosen)


def test_groups_divided_by_the_split_column_give_a_warning(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    folds = ["train", "train", "test", "valid"]
    whole = [{**row, "fold": folds[n % 4], "db": f"{folds[n % 4]} {n % 3}"} for n, row in enumerate(rows(60))]
    by = {"column": "fold", "by": "db"}
    assert build(whole, split=by).facts()["copies"]["groups"]["test"] == {
        "groups": 0, "rows": 0, "of": 15, "example": None,
    }  # fmt: skip
    assert "groups of `db`" not in capsys.readouterr().err
    divided = [{**row, "db": "both"} if n in (0, 2, 6) else row for n, row in enumerate(whole)]
    groups = build(divided, split=by).facts()["copies"]["groups"]
    assert groups["test"] == {"groups": 1, "rows": 2, "of": 15, "example": ["own.jsonl:3", "own.jsonl:1"]}
    assert groups["valid"]["rows"] == 0
    assert "warning: 2 of 15 test rows are in 1 groups of `db`" in capsys.readouterr().err
    with raises(DataError, "leakage", "`db`", where="data.leakage"):
        build(divided, split=by, leakage="error")
    assert "groups" not in build(divided, split={"column": "fold"}).facts()["copies"]


def test_double_braces_around_a_column_give_a_warning(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build(rows(60), prompt="{{a}} {q} {{other}}")
    log = capsys.readouterr().err
    assert log.count("`{{a}}`") == 1
    assert "other" not in log


def test_empty_optional_cells_are_counted(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{**row, **({"n": "note"} if n % 3 else {"n": None} if n % 2 else {})} for n, row in enumerate(rows(60))]
    facts = build(lines, prompt="{q} {n?}").facts()
    assert facts["empty"] == {"n": 20}
    assert sum(facts["counts"][name] for name in ("train", "valid", "test")) == 60
    assert "`n` is empty in 20 of 60 rows" in capsys.readouterr().err
    assert build(lines).facts()["empty"] == {}


@given(st.lists(st.integers(1, 5000), max_size=60))
def test_histogram_counts_every_length_once(lengths: list[int]) -> None:
    processed = histogram(lengths)
    bins = processed["histogram"]
    assert sum(count for _, _, count in bins) == len(lengths)
    for low, high, count in bins:
        assert count == sum(low <= length < high for length in lengths)
    assert all(left[1] == right[0] for left, right in pairwise(bins))
    assert len(bins) <= 21
    if lengths:
        assert processed["max"] == max(lengths)
        assert Counter(lengths)[processed["median"]]
        assert sum(length <= processed["p95"] for length in lengths) >= 0.95 * len(lengths)


def test_empty_splits_lists_needed_splits_without_rows() -> None:
    default, by_column = recipe(), recipe(split={"column": "fold"})
    assert empty_splits({"train": 1, "valid": 1, "test": 1}, default) == []
    assert empty_splits({"train": 0, "valid": 0}, default) == ["train", "valid", "test"]
    assert empty_splits({"train": 5, "test": 1}, recipe(split={"valid": 0})) == []
    assert empty_splits({"train": 5, "test": 1}, recipe(split={}, valid={"file": "valid.jsonl"})) == ["valid"]
    assert empty_splits({"train": 5, "test": 1}, by_column) == []
    assert empty_splits({"train": 5, "valid": 1}, by_column) == ["test"]
    for change in ({"valid_metrics": ("rougeL",)}, {"select_best_by": "token_accuracy"}):
        changed = by_column.model_copy(update={"train": by_column.train.model_copy(update=change)})
        assert empty_splits({"train": 5, "test": 1}, changed) == ["valid"]
