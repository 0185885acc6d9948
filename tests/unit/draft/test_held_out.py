"""Files beside a training file are found by their names and columns."""

from pathlib import Path

import pytest
from tests.unit.draft.conftest import write

from tunesmith.draft.held_out import find_held_out, numbered_references

ROWS = [{"q": "x", "a": "y"}]


@pytest.mark.parametrize(
    ("file", "beside", "found"),
    [
        ("train.jsonl", ["valid.jsonl", "test.jsonl"], {"valid": "valid.jsonl", "test": "test.jsonl"}),
        ("x.train.jsonl", ["x.dev.jsonl"], {"valid": "x.dev.jsonl"}),
        ("x-train.jsonl", ["x-validation.jsonl", "x-test.jsonl"],
         {"valid": "x-validation.jsonl", "test": "x-test.jsonl"}),
        ("train-00000-of-00001.jsonl", ["test-00000-of-00001.jsonl"], {"test": "test-00000-of-00001.jsonl"}),
        ("x.jsonl", ["x_test.jsonl", "valid.jsonl"], {"valid": "valid.jsonl", "test": "x_test.jsonl"}),
        ("train.jsonl", ["other-test.jsonl"], {}),
        ("trainer.jsonl", ["test-er.jsonl"], {}),
        ("test.jsonl", ["test.jsonl"], {}),
    ],
)  # fmt: skip
def test_usual_names_are_found(file: str, beside: list[str], found: dict[str, str], tmp_path: Path) -> None:
    for name in (file, *beside):
        write(tmp_path / name, ROWS)
    sources = find_held_out({"file": file}, {"q", "a"}, tmp_path)
    assert {split: source["file"] for split, source in sources.items()} == found


def test_files_with_other_columns_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"q": "x"}])
    (tmp_path / "valid.jsonl").write_text("{", encoding="utf-8")
    assert find_held_out({"file": "train.jsonl"}, {"q", "a"}, tmp_path) == {}


def test_found_files_keep_the_settings_of_the_source(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [{"q.": "x", "a": "y"}])
    source = {"file": "train.jsonl", "rename": {"q.": "q_"}}
    assert find_held_out(source, {"q.", "a"}, tmp_path) == {"test": {**source, "file": "test.jsonl"}}


def test_numbered_references_of_a_test_file(tmp_path: Path) -> None:
    write(tmp_path / "x.test.jsonl", [{"q": "x", "a1": "y", "a2": "z", "a10": "u", "ab": "v"}])
    write(tmp_path / "x.dev.jsonl", [{"q": "x", "a1": "y"}])
    source = {"file": "x.train.jsonl", "rename": {"a": "b"}}
    found = find_held_out(source, {"q", "a"}, tmp_path)
    assert found == {"test": {"file": "x.test.jsonl", "rename": {"a1": "b"}}}
    assert numbered_references(found.values(), "b", tmp_path) == ["b", "a2", "a10"]
    assert numbered_references(found.values(), "q", tmp_path) == []
