"""Sources of their own for valid and test rows: which rows are in which split, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.dataset import Dataset, build_dataset
from tunesmith.data.sources import digest_sources
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.load import RecipeProblems, load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]
Load = Callable[..., Recipe]
Build = Callable[..., Dataset]


def rows(count: int, word: str = "what", start: int = 0) -> list[Row]:
    return [{"q": f"{word} is {n}", "a": f"it is {n}"} for n in range(start, start + count)]


FILES = {"all.jsonl": rows(100), "valid.jsonl": rows(20, "which"), "test.jsonl": rows(30, "who")}


@pytest.fixture
def load(tmp_path: Path, tokenizer_folder: Path) -> Load:
    """Write FILES, replaced by `files`, and load a recipe with changes of its `data` section."""

    def load_(files: dict[str, list[Row]] | None = None, **data: Any) -> Recipe:
        for name, lines in {**FILES, **(files or {})}.items():
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        section = {"source": {"file": "all.jsonl"}, "task": "completion", "prompt": "{q}", "response": "{a}", **data}
        return load_recipe(write_recipe(tmp_path, tokenizer_folder, data=section))

    return load_


@pytest.fixture
def build(load: Load, tmp_path: Path, tokenizer_folder: Path) -> Build:
    """Build the dataset of such a recipe."""

    def build_(files: dict[str, list[Row]] | None = None, **data: Any) -> Dataset:
        recipe = load(files, **data)
        return build_dataset(recipe, task_for(recipe.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)

    return build_


def by_source(dataset: Dataset, split: str) -> dict[str, int]:
    return dict(Counter(row.entry.source for row in dataset.used[split]))


def test_own_sources_give_all_their_rows_to_one_split(build: Build) -> None:
    dataset = build(valid={"file": "valid.jsonl"}, test={"file": "test.jsonl"})
    assert by_source(dataset, "train") == {"all.jsonl": 100}
    assert by_source(dataset, "valid") == {"valid.jsonl": 20}
    assert by_source(dataset, "test") == {"test.jsonl": 30}
    assert [row.entry.row for row in dataset.used["test"]] == list(range(121, 151))


def test_the_other_split_is_still_a_fraction_of_the_source(build: Build) -> None:
    dataset = build(valid=0.2, test={"file": "test.jsonl"})
    assert by_source(dataset, "test") == {"test.jsonl": 30}
    taken = by_source(dataset, "valid")["all.jsonl"]
    assert 8 <= taken <= 35
    assert by_source(dataset, "train") == {"all.jsonl": 100 - taken}
    same = build(split={"valid": 0.2}, test={"file": "test.jsonl"})
    assert [row.entry.id for row in same.used["valid"]] == [row.entry.id for row in dataset.used["valid"]]


def test_a_fraction_means_the_same_as_in_split(build: Build) -> None:
    short, long = build(valid=0.1, test=0.3), build(split={"valid": 0.1, "test": 0.3})
    for split in ("train", "valid", "test"):
        assert [row.entry.id for row in short.used[split]] == [row.entry.id for row in long.used[split]]


def test_several_sources_may_hold_the_test_rows(build: Build) -> None:
    dataset = build({"more.jsonl": rows(5, "whose")}, test=[{"file": "test.jsonl"}, {"file": "more.jsonl"}])
    assert by_source(dataset, "test") == {"test.jsonl": 30, "more.jsonl": 5}


def test_columns_are_renamed_per_source(build: Build) -> None:
    official = [{"question": f"who is {n}", "a": "me"} for n in range(30)]
    dataset = build({"test.jsonl": official}, test={"file": "test.jsonl", "rename": {"question": "q"}})
    assert by_source(dataset, "test") == {"test.jsonl": 30}
    with raises(DataError, "missing-column", "q", where="test.jsonl:1"):
        build({"test.jsonl": official}, test={"file": "test.jsonl"})


def test_leakage_from_an_official_test_file_is_found(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    leaking = {"test.jsonl": [*rows(27, "who"), *rows(3)]}
    copies = build(leaking, test={"file": "test.jsonl"}, valid=0.1).copies
    assert copies["test"]["exact"] + copies["groups"]["test"]["rows"] >= 2
    assert "test.jsonl:28" in capsys.readouterr().err
    dropped = build(leaking, test={"file": "test.jsonl"}, valid={"file": "valid.jsonl"}, leakage="drop")
    assert (len(dropped.used["train"]), len(dropped.used["test"])) == (97, 30)
    with raises(DataError, "leakage"):
        build(leaking, test={"file": "test.jsonl"}, valid={"file": "valid.jsonl"}, leakage="error")


def test_groups_that_training_shares_with_an_official_test_file_are_counted(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    same_prompt = [*rows(29, "who"), {"q": "WHAT is 7", "a": "something else entirely"}]
    groups = build({"test.jsonl": same_prompt}, test={"file": "test.jsonl"}, valid=0.0).copies["groups"]
    assert groups["test"]["rows"] == groups["test"]["groups"] == 1
    assert "1 of 30 test rows" in capsys.readouterr().err


def test_unusable_test_rows_are_an_error_that_names_the_key(build: Build) -> None:
    empty = [{"q": "", "a": "x"} for _ in range(3)]
    with raises(DataError, "empty-split", "data.test"):
        build({"test.jsonl": empty}, test={"file": "test.jsonl"}, max_dropped_fraction=0.5)
    with raises(DataError, "no-rows", where="test.jsonl"):
        build({"test.jsonl": []}, test={"file": "test.jsonl"})


def test_the_digest_covers_own_sources(load: Load, tmp_path: Path) -> None:
    recipe = load(test={"file": "test.jsonl"})
    before = digest_sources(all_sources(recipe.data), folder=tmp_path)
    load({"test.jsonl": rows(31, "who")})
    assert digest_sources(all_sources(recipe.data), folder=tmp_path) != before


@pytest.mark.parametrize(
    ("data", "code", "key"),
    [
        ({"test": {"file": "test.jsonl"}, "split": {"test": 0.2}}, "contradiction", "data"),
        ({"valid": 0.1, "split": {"column": "part"}}, "contradiction", "data"),
        ({"valid": 0.6, "test": 0.3999, "split": {"by": "q"}, "too_long": "x"}, "wrong-value", "data.too_long"),
        ({"valid": 0.6, "test": 0.5}, "contradiction", "data"),
        ({"test": 0.0}, "contradiction", "data.test"),
        ({"test": 1.5}, "wrong-value", "data.test"),
        ({"test": {"file": "test.jsonl", "weight": 2}}, "no-effect", "data.test"),
        ({"test": {"fil": "test.jsonl"}}, "missing-key", "data.test"),
        ({"test": {"file": "test.jsonl", "splt": "x"}}, "unknown-key", "data.test.splt"),
        ({"test": [{"file": "test.jsonl"}, {"hub": "a/b", "weigth": 2}]}, "unknown-key", "data.test.1.weigth"),
        ({"test": []}, "wrong-value", "data.test"),
        ({"test": "test.jsonl"}, "missing-key", "data.test"),
    ],
)
def test_wrong_settings_are_refused(load: Load, data: dict[str, Any], code: str, key: str) -> None:
    with pytest.raises(RecipeProblems) as caught:
        load(**data)
    [problem] = caught.value.problems
    assert (problem.code, problem.key) == (code, key)


def test_one_file_cannot_be_both_train_and_test(build: Build) -> None:
    with raises(RecipeError, "duplicate-source", "all.jsonl"):
        build(test={"file": "all.jsonl"})
