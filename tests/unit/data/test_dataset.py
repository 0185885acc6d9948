"""Warnings and errors about all rows together: control tokens, splits far from the asked fractions, empty splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError
from tunesmith.data.dataset import Dataset, build_dataset
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]
Gather = Callable[..., Dataset]


@pytest.fixture
def gathered(tmp_path: Path, tokenizer_folder: Path) -> Gather:
    """Gather rows by a `data` section."""

    def done(rows: list[Row], **data: Any) -> Dataset:
        section = {
            "source": {"file": "own.jsonl"}, "task": "completion", "prompt": "{q}", "response": "{a}",
            "split": {"valid": 0.1, "test": 0.1}, **data,
        }  # fmt: skip
        recipe = load_recipe(write_recipe(tmp_path, tokenizer_folder, data=section))
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build_dataset(recipe, task_for(recipe.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)

    return done


def rows(count: int, **more: Any) -> list[Row]:
    return [{"q": f"what is {n}", "a": f"it is {n}", **more} for n in range(count)]


def test_rows_that_spell_control_tokens_are_counted_and_give_a_warning(
    gathered: Gather, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rows(60)
    assert gathered(lines).facts()["control_tokens"] == {"rows": 0}
    assert "control tokens" not in capsys.readouterr().err
    for line in lines[5:50:5]:
        line["a"] += "<|im_end|>"
    found = gathered(lines).facts()["control_tokens"]
    assert found == {"rows": 9, "token": "<|im_end|>", "first": "own.jsonl:6"}
    assert "9 rows spell control tokens" in capsys.readouterr().err


def test_a_split_far_from_the_asked_fraction_gives_a_warning_with_the_reason(
    gathered: Gather, capsys: pytest.CaptureFixture[str]
) -> None:
    gathered(rows(200))
    assert "asked for" not in capsys.readouterr().err
    # 60 % of the rows ask the same: the split that gets them is far above its fraction, or the others are far below.
    told = []
    for seed in range(12):
        lines = [{**row, "q": f"hi {seed}" if n % 5 < 3 else row["q"]} for n, row in enumerate(rows(200))]
        found = gathered(lines)
        said = capsys.readouterr().err
        most = max(("train", "valid", "test"), key=lambda name: len(found.used[name]))
        assert ("120 rows ask the same" in said) == (most != "train")
        told.append(most)
    assert {"valid", "test"} & set(told)


@pytest.mark.parametrize(
    ("lines", "split", "expected"),
    [
        (
            [{"q": "same", "a": str(n)} for n in range(30)],
            {},
            "only 1 prompt.*ask the same.*data.split.column.*data.split.by",
        ),
        ([{"q": f"x{n % 2}", "a": str(n)} for n in range(30)], {}, "2 different prompts"),
        (rows(30, db="one"), {"by": "db"}, "have the same `db`"),
        (rows(30, fold="train"), {"column": "fold"}, "no row .* says test in the column `fold`"),
        (rows(2), {}, "give more rows"),
    ],
)
def test_empty_splits_are_explained(gathered: Gather, lines: list[Row], split: Row, expected: str) -> None:
    chosen = split if "column" in split else {"valid": 0.1, "test": 0.1, **split}
    with pytest.raises(DataError, match=expected) as caught:
        gathered(lines, split=chosen)
    assert caught.value.exit_code == 3


def test_groups_that_the_column_of_splits_parts_are_counted(
    gathered: Gather, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = ["train", "train", "test", "valid"]
    whole = [{**row, "fold": folds[n % 4], "db": f"{folds[n % 4]} {n % 3}"} for n, row in enumerate(rows(60))]
    by = {"column": "fold", "by": "db"}
    assert gathered(whole, split=by).facts()["copies"]["groups"]["test"] == {
        "groups": 0, "rows": 0, "of": 15, "example": None,
    }  # fmt: skip
    assert "groups of `db`" not in capsys.readouterr().err
    parted = [{**row, "db": "both"} if n in (0, 2, 6) else row for n, row in enumerate(whole)]
    found = gathered(parted, split=by).facts()["copies"]["groups"]
    assert found["test"] == {"groups": 1, "rows": 2, "of": 15, "example": ["own.jsonl:3", "own.jsonl:1"]}
    assert found["valid"]["rows"] == 0
    assert "2 of 15 test rows are in 1 groups of `db`" in capsys.readouterr().err
    with pytest.raises(DataError) as caught:
        gathered(parted, split=by, leakage="error")
    assert (caught.value.exit_code, caught.value.where) == (3, "data.leakage")
    assert "groups" not in gathered(parted, split={"column": "fold"}).facts()["copies"]


def test_double_braces_around_a_column_give_a_warning(gathered: Gather, capsys: pytest.CaptureFixture[str]) -> None:
    gathered(rows(60), prompt="{{a}} {q} {{other}}")
    said = capsys.readouterr().err
    assert said.count("`{{a}}`") == 1
    assert "other" not in said


def test_empty_optional_cells_are_counted(gathered: Gather, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{**row, **({"n": "note"} if n % 3 else {"n": None} if n % 2 else {})} for n, row in enumerate(rows(60))]
    found = gathered(lines, prompt="{q} {n?}").facts()
    assert found["empty"] == {"n": 20}
    assert sum(found["counts"][name] for name in ("train", "valid", "test")) == 60
    assert "`n` is empty in 20 of 60 rows" in capsys.readouterr().err
    assert gathered(lines).facts()["empty"] == {}
