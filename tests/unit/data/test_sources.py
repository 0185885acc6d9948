"""Rows and digests of sources, and the errors and hints for missing columns and unsuitable files."""

import csv
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.errors import raises
from tests.unit.data.conftest import files, values

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.sources import Row, digest_sources, missing_column_error, read_rows, sources_available
from tunesmith.recipe.data_source import EmbeddedSource, FileSource, GeneratedSource

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
COMMIT = "a" * 40


def test_generated_rows_are_numbered(tmp_path: Path) -> None:
    source = GeneratedSource(generated="shop-sql", rows=12, seed=3)
    result = list(read_rows(source, folder=tmp_path))
    assert len(result) == 12
    assert (result[11].number, result[11].where) == (12, "shop-sql row 12")
    assert values(result) == values(list(read_rows(source, folder=tmp_path)))


def test_embedded_rows_are_numbered_and_have_a_digest(tmp_path: Path) -> None:
    source = EmbeddedSource(embedded="general")
    result = list(read_rows(source, folder=tmp_path, needed=["prompt", "response", "text", "kind"]))
    assert (result[11].number, result[11].where, result[11].source) == (12, "general row 12", "general")
    digests = [digest_sources(kind, folder=tmp_path) for kind in (source, GeneratedSource(generated="shop-sql"))]
    assert len({*digests}) == 2
    assert sources_available(source, folder=tmp_path)


def test_digest_of_files_follows_their_content(tmp_path: Path) -> None:
    for name, text in {"a.csv": "a\n1\n", "same.csv": "a\n1\n", "b.csv": "a\n2\n", "a.tsv": "a\n1\n"}.items():
        (tmp_path / name).write_text(text)

    def digest(*names: str) -> str:
        return digest_sources(files(*names), folder=tmp_path)

    assert digest("a.csv") == digest("same.csv") == digest(str(tmp_path / "a.csv"))
    different = [("a.csv",), ("b.csv",), ("a.tsv",), ("a.csv", "b.csv"), ("b.csv", "a.csv")]
    assert len({digest(*names) for names in different}) == len(different)
    with raises(DataError, "not-found", where="c.csv"):
        digest("c.csv")


def test_digest_of_a_generator_follows_its_settings(tmp_path: Path) -> None:
    settings_of = [(10, 0), (11, 0), (10, 1)]
    digests = [
        digest_sources(GeneratedSource(generated="shop-sql", rows=count, seed=seed), folder=tmp_path)
        for count, seed in [*settings_of, settings_of[0]]
    ]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("name", "columns", "hint"),
    [
        ("respnse", ["prompt", "response"], "did you mean `response`? the columns are: prompt, response"),
        ("TEXT", ["text"], "did you mean `text`"),
        (" q ", ["q", "a"], "did you mean `q`"),
        ("zzz", ["prompt", "response"], "the columns are: prompt, response"),
        ("ref", ["mr;ref"], "separator"),
        ("a", [], "no columns"),
        ("zzz", [f"c{n}" for n in range(99)], "c29 and 69 more"),
    ],
)
def test_missing_column_error_lists_the_columns(name: str, columns: list[str], hint: str) -> None:
    error = missing_column_error(name, Row(1, "a.csv:2", dict.fromkeys(columns, ""), "a.csv"))
    assert (error.code, error.where) == ("missing-column", "a.csv:2")
    assert f"`{name}`" in error.message
    assert hint in str(error.hint)


def read(tmp_path: Path, *names: str, **columns: Any) -> list[Row]:
    return list(read_rows(files(*names), folder=tmp_path, **columns))


def test_quote_none_reads_quotes_as_text(tmp_path: Path) -> None:
    cells = [['He said "no', '"all" of it'], ['"', ""], ['"a', 'b"'], ["a''", '""']]
    (tmp_path / "a.tsv").write_text("x\ty\n" + "".join("\t".join(row) + "\n" for row in cells))
    source = FileSource(file="a.tsv", quote="none")
    assert [list(row.values.values()) for row in read_rows(source, folder=tmp_path)] == cells
    with raises(DataError, "invalid-csv", "`quote: none`"):
        list(read_rows(FileSource(file="a.tsv"), folder=tmp_path))
    (tmp_path / "a.jsonl").write_text("{}\n")
    with raises(RecipeError, "no-effect", "`quote`", where="a.jsonl"):
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
def test_hint_suggests_the_real_separator_or_format(tmp_path: Path, name: str, content: str, hint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, name)
    assert hint in str(caught.value.hint)


def test_json_may_omit_a_column_in_some_rows_but_not_in_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 1, "b": 2}\n{"a": 3}\n')
    assert len(read(tmp_path, "a.jsonl", needed=["a", "b"], optional=["b"])) == 3
    for columns in ({"needed": ["c"]}, {"optional": ["c"]}):
        with raises(DataError, "missing-column", "`c`", where="a.jsonl:1"):
            read(tmp_path, "a.jsonl", **columns)


def test_needed_columns_are_in_each_file_and_optional_ones_in_any(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert len(read(tmp_path, "a.jsonl", "b.jsonl", needed=["a"], optional=["b"])) == 3
    with raises(DataError, "missing-column", "`b`", where="b.jsonl:1"):
        read(tmp_path, "a.jsonl", "b.jsonl", needed=["b"])


def test_path_is_needed_like_a_column(tmp_path: Path) -> None:
    lines = [{"t": {"en": "x"}, "n": {}}, {"t": None, "n": {"k": 1}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(list(read_rows(files("a.jsonl"), folder=tmp_path, needed=["t.en"], optional=["n.k"]))) == 2
    for wrong in ("t.em", "n.l"):
        with raises(DataError, "missing-column", f"`{wrong}`", "`t.en`" if wrong == "t.em" else ""):
            list(read_rows(files("a.jsonl"), folder=tmp_path, needed=[wrong]))
    with raises(DataError, "missing-column", "`t.em`"):
        list(read_rows(files("a.jsonl"), folder=tmp_path, optional=["t.em"]))
    (tmp_path / "b.jsonl").write_text(json.dumps({"t": "{"}))
    with raises(DataError, "missing-column", "`t.en`", "not JSON"):
        list(read_rows(files("b.jsonl"), folder=tmp_path, needed=["t.en"]))
    source = FileSource(file="a.jsonl", rename={"t.en": "en"})
    with raises(DataError, "missing-column", "`t.en`"):
        list(read_rows(source, folder=tmp_path))


def test_objects_of_parquet_and_csv_need_not_have_the_same_keys(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('c\n{}\n"{""k"": 1}"\n')
    assert len(list(read_rows(files("a.csv"), folder=tmp_path, needed=["c.k"]))) == 2
    pq.write_table(pa.Table.from_pylist([{"a": {"text": []}}, {"a": {"text": ["x"]}}]), tmp_path / "a.parquet")
    assert len(list(read_rows(files("a.parquet"), folder=tmp_path, needed=["a.text.0"]))) == 2


def test_missing_column_of_a_long_file_is_reported_early(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "1\n" * 3000)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 3000)
    for name, rows_before in (("a.csv", 0), ("a.jsonl", 999)):
        result = read_rows(files(name), folder=tmp_path, needed=["b"])
        assert len(list(islice(result, rows_before))) == rows_before
        with raises(DataError, "missing-column", "`b`"):
            next(result)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "x"}]}, "`messages: conversations`"),
        ({"dialog": [{"role": "user", "content": "x"}]}, "`messages: dialog`"),
        ({"instruction": "x", "input": "", "output": "y"}, r"Alpaca.*\{instruction\}.*\{input\?\}"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "preference pairs"),
        ({"prompt": "x", "completion": "y"}, r"\{completion\}"),
        ({"a": {"zzz": "x"}}, "`a.zzz`"),
        ({"a": '{"zzz": "x"}'}, "`a.zzz`"),
        ({"zzz?": "x"}, r"rename: \{'zzz\?': zzz\}"),
    ],
)
def test_hint_recognizes_common_row_formats(values: dict[str, Any], expected: str) -> None:
    assert re.search(expected, str(missing_column_error("zzz", Row(1, "a.jsonl:1", values, "a.jsonl")).hint))


def test_import_of_sources_does_not_import_datasets() -> None:
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
def test_real_files_are_read_completely_and_unchanged(name: str, count: int, last: int) -> None:
    result = list(read_rows(files(name), folder=SHARED))
    with (SHARED / name).open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file)) if name.endswith(".csv") else [json.loads(line) for line in file]
    assert len(result) == count
    assert result[-1].where == f"{name}:{last}"
    assert values(result) == expected
