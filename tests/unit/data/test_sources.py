"""Rows as they are in the files, and every way in which a file can be wrong."""

import csv
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.conftest import files, values

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.sources import Row, digest_sources, missing_column_error, read_rows
from tunesmith.recipe.data_source import FileSource, GeneratedSource

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
COMMIT = "a" * 40


def test_generated_rows_are_numbered(tmp_path: Path) -> None:
    source = GeneratedSource(generated="shop-sql", rows=12, seed=3)
    found = list(read_rows(source, folder=tmp_path))
    assert len(found) == 12
    assert (found[11].number, found[11].where) == (12, "shop-sql row 12")
    assert values(found) == values(list(read_rows(source, folder=tmp_path)))


def test_the_digest_of_files_is_that_of_their_content(tmp_path: Path) -> None:
    for name, text in {"a.csv": "a\n1\n", "same.csv": "a\n1\n", "b.csv": "a\n2\n", "a.tsv": "a\n1\n"}.items():
        (tmp_path / name).write_text(text)

    def digest(*names: str) -> str:
        return digest_sources(files(*names), folder=tmp_path)

    assert digest("a.csv") == digest("same.csv") == digest(str(tmp_path / "a.csv"))
    different = [("a.csv",), ("b.csv",), ("a.tsv",), ("a.csv", "b.csv"), ("b.csv", "a.csv")]
    assert len({digest(*names) for names in different}) == len(different)
    with pytest.raises(DataError, match="there is no such file"):
        digest("c.csv")


def test_the_digest_of_a_generator_is_that_of_its_settings(tmp_path: Path) -> None:
    settings_of = [(10, 0), (11, 0), (10, 1)]
    digests = [
        digest_sources(GeneratedSource(generated="shop-sql", rows=count, seed=seed), folder=tmp_path)
        for count, seed in [*settings_of, settings_of[0]]
    ]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("asked", "columns", "expected"),
    [
        ("respnse", ["prompt", "response"], "a.csv:2: there is no column `respnse`\n.*did you mean `response`.*prompt"),
        ("TEXT", ["text"], "did you mean `text`"),
        (" q ", ["q", "a"], "did you mean `q`"),
        ("zzz", ["prompt", "response"], "hint: the columns are: prompt, response"),
        ("ref", ["mr;ref"], "the columns are: mr;ref; the file seems not to be separated"),
        ("a", [], "the row has no columns at all"),
        ("zzz", [f"c{n}" for n in range(99)], "c29 and 69 more"),
    ],
)
def test_a_missing_column_is_told_with_those_there_are(asked: str, columns: list[str], expected: str) -> None:
    row = Row(1, "a.csv:2", dict.fromkeys(columns, ""), "a.csv")
    with pytest.raises(DataError, match=expected):
        raise missing_column_error(asked, row)


def read(tmp_path: Path, *names: str, **asked: Any) -> list[Row]:
    return list(read_rows(files(*names), folder=tmp_path, **asked))


def test_a_file_without_quotes_is_read_to_the_letter(tmp_path: Path) -> None:
    cells = [['He said "no', '"all" of it'], ['"', ""], ['"a', 'b"'], ["a''", '""']]
    (tmp_path / "a.tsv").write_text("x\ty\n" + "".join("\t".join(row) + "\n" for row in cells))
    source = FileSource(file="a.tsv", quote="none")
    assert [list(row.values.values()) for row in read_rows(source, folder=tmp_path)] == cells
    with pytest.raises(DataError) as caught:
        list(read_rows(FileSource(file="a.tsv"), folder=tmp_path))
    assert "`quote: none`" in str(caught.value.hint)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError):
        list(read_rows(FileSource(file="a.jsonl", quote="none"), folder=tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.csv", "a;b\n1,5;2\n", "seems to be `;`"),
        ("a.csv", "a|b\n1,5|2\n", "seems to be `|`"),
        ("a.csv", "a\tb\n1,5\t2\n", "rename the file to .tsv"),
        ("a.tsv", "a,b\n1\t5,2\n", "rename the file to .csv"),
        ("a.csv", "a,b\n1,2,3\n", "needs quotes"),
        ("a.jsonl", '[{"a": 1},\n{"a": 2}]\n', ".json"),
        ("a.jsonl", '[\n{"a": 1}\n]\n', ".json"),
        ("a.jsonl", '[{"a": 1}]\n', ".json"),
    ],
)
def test_the_hint_says_what_the_file_seems_to_be(tmp_path: Path, name: str, content: str, hint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, name)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("pattern", ["d/*.jsonl", "d/?.jsonl", "d/[ab].jsonl", "*/a.jsonl"])
def test_file_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "d" / name).write_text("{}\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path, pattern)
    assert caught.value.where == pattern
    assert "patterns are not read" in str(caught.value.hint)
    assert "a.jsonl" in str(caught.value.hint)


def test_json_may_leave_a_column_out_of_some_rows_and_not_of_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 1, "b": 2}\n{"a": 3}\n')
    assert len(read(tmp_path, "a.jsonl", needed=["a", "b"], optional=["b"])) == 3
    for asked in ({"needed": ["c"]}, {"optional": ["c"]}):
        with pytest.raises(DataError, match="no column `c`") as caught:
            read(tmp_path, "a.jsonl", **asked)
        assert caught.value.where == "a.jsonl:1"


def test_each_file_needs_the_columns_and_one_the_optional_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert len(read(tmp_path, "a.jsonl", "b.jsonl", needed=["a"], optional=["b"])) == 3
    with pytest.raises(DataError, match="no column `b`") as caught:
        read(tmp_path, "a.jsonl", "b.jsonl", needed=["b"])
    assert caught.value.where == "b.jsonl:1"


def test_a_missing_column_of_a_long_file_is_reported_early(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "1\n" * 3000)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 3000)
    for name, most in (("a.csv", 0), ("a.jsonl", 999)):
        found = read_rows(files(name), folder=tmp_path, needed=["b"])
        assert len(list(islice(found, most))) == most
        with pytest.raises(DataError, match="no column `b`"):
            next(found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "x"}]}, "ShareGPT.*human -> user.*messages: conversations"),
        ({"dialog": [{"role": "user", "content": "x"}]}, "`messages: dialog`"),
        ({"instruction": "x", "input": "", "output": "y"}, r"Alpaca.*\{instruction\}.*\{input\?\}"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "preference data"),
        ({"prompt": "x", "completion": "y"}, r"\{completion\}"),
        ({"zzz?": "x"}, r"rename: \{'zzz\?': zzz\}"),
    ],
)
def test_rows_of_a_known_shape_are_recognised(values: dict[str, Any], expected: str) -> None:
    assert re.search(expected, str(missing_column_error("zzz", Row(1, "a.jsonl:1", values, "a.jsonl")).hint))


def test_starting_up_does_not_import_datasets() -> None:
    code = "import sys, tunesmith.data.sources; print({'datasets', 'pyarrow', 'pandas', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("name", "count", "last"),
    [
        ("viggo/viggo-train.csv", 5103, 5104),
        ("viggo/viggo-valid.csv", 714, 715),
        ("dialogsum/dialogsum.dev.jsonl", 500, 500),
        ("netflix/netflix_titles.csv", 8807, 8810),
        ("spider/spider-create-context.train.jsonl", 7000, 7000),
        ("oasst1/oasst1-en.threads.jsonl", 1399, 1399),
        ("oasst1/oasst1-en.top1-chatml.jsonl", 277, 277),
        ("oasst1/oasst1-en.ranked-pairs.jsonl", 1718, 1718),
    ],
)
def test_real_files_are_read_whole_and_unchanged(name: str, count: int, last: int) -> None:
    found = list(read_rows(files(name), folder=SHARED))
    with (SHARED / name).open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file)) if name.endswith(".csv") else [json.loads(line) for line in file]
    assert len(found) == count
    assert found[-1].where == f"{name}:{last}"
    assert values(found) == expected
