"""Rows of CSV, JSON, JSONL and Parquet files have exact values and their place in the file."""

import csv
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.conftest import files, per_example, values

from tunesmith.data import local_files
from tunesmith.data.sources import Row, read_rows
from tunesmith.tasks.base import cell_text
from tunesmith.tasks.json_values import JsonNumber


def test_json_values_are_exact(rows: Callable[..., list[Row]]) -> None:
    written: list[dict[str, Any]] = [
        {"a": 1, "b": {"x": 1}},
        {"a": "1", "b": {"y": None}, "only here": [1, "two", None, {}]},
        {"a": 12345678901234567890123456789, "b": None},
        {"a": 0.1, "b": {"x": True}, "text": "NA \u2028 😀 \x00 \\"},
        {},
    ]
    result = rows(a__jsonl="".join(json.dumps(row) + "\n" for row in written))
    assert values(result) == written
    assert [list(row.values) for row in result] == [list(row) for row in written]
    assert [type(row.values["a"]) for row in result[:4]] == [int, str, int, JsonNumber]


NUMBERS = [
    "12.50", "1E3", "1e+3", "10000000000000000.0", "-0", "-0.0", "0", "0.10", "1e400", "-1e400", "5e-400", "7",
    "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_numbers_and_booleans_keep_the_text_of_the_file(rows: Callable[..., list[Row]], name: str) -> None:
    texts = [*NUMBERS, "true", "false"]
    lines = [f'{{"c": {text}}}' for text in texts]
    whole = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    result = values(rows(**{name.replace(".", "__"): whole}))
    assert [cell_text(row, "c") for row in result] == texts
    # Rows are pickled to reach worker processes.
    assert [cell_text(pickle.loads(pickle.dumps(row)), "c") for row in result] == texts


def test_json_number_compares_and_computes_as_a_number(rows: Callable[..., list[Row]]) -> None:
    [row] = values(rows(a__jsonl='{"c": 12.50, "d": [1.50, {"e": 2.0}]}'))
    assert row["c"] + 1 == 13.5
    assert row["c"] == 12.5
    assert row["d"] == [1.5, {"e": 2.0}]


def test_csv_cells_are_exact_text(rows: Callable[..., list[Row]]) -> None:
    cells = [
        ["NA", "null", "007"],
        ["1.0", "", " x "],
        ["True", '"', "1e5"],
        ["NaN", "a,b", "\u2028"],
        ["-0", "'", "#"],
    ]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([["a", "b", "c"], *cells])
    assert values(rows(a__csv=written.getvalue())) == [dict(zip("abc", row, strict=True)) for row in cells]


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
@settings(per_example, max_examples=40)
def test_csv_round_trip(tmp_path: Path, table: list[list[str]]) -> None:
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *table])
    (tmp_path / "a.csv").write_bytes(written.getvalue().encode())
    result = values(list(read_rows(files("a.csv"), folder=tmp_path)))
    assert result == [dict(zip("abc", row, strict=True)) for row in table]


def test_place_of_a_row_is_its_first_line(rows: Callable[..., list[Row]]) -> None:
    result = rows(a__csv='a,b\n1,"x\ny\r\nz"\n\n2,"p\n"\n3,q', b__jsonl='\n{"a": 1}\r\n\n{"a": 2}')
    assert [row.where for row in result] == ["a.csv:2", "a.csv:6", "a.csv:8", "b.jsonl:2", "b.jsonl:4"]
    assert [row.number for row in result] == [1, 2, 3, 4, 5]
    assert result[0].values == {"a": "1", "b": "x\ny\r\nz"}
    assert result[4].values == {"a": 2}


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    written = [{"q": "ä 1", "a": "x\ty"}, {"q": "2", "a": ""}]
    table = pa.Table.from_pylist(written)
    pq.write_table(table, tmp_path / "t.parquet")
    for name, new in {"stream.arrow": pa.ipc.new_stream, "file.arrow": pa.ipc.new_file}.items():
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    texts = {
        "t.csv": "q,a\nä 1,x\ty\n2,\n",
        "crlf.csv": '\ufeff"q",a\r\nä 1,x\ty\r\n2,\r\n',
        "t.tsv": 'q\ta\nä 1\t"x\ty"\n2\t\n',
        "t.json": json.dumps(written, indent=1),
        "lines.json": "\ufeff" + "\n".join(json.dumps(row) for row in written),
        "t.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in written) + "\r\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "glob [1]*?#%20.csv").write_text(texts["t.csv"])
    read = {path.name: values(list(read_rows(files(path.name), folder=tmp_path))) for path in tmp_path.iterdir()}
    assert len(read) == 16
    assert {name: result for name, result in read.items() if result != written} == {}


def test_parquet_rows_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    monkeypatch.setattr(local_files, "_BATCH_ROWS", 2)
    written = [{"n": n, "nested": {"x": [n, None]}, "blob": bytes([n])} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(written), tmp_path / "a.parquet")
    result = list(read_rows(files("a.parquet"), folder=tmp_path))
    assert values(result) == written
    assert result[4].where == "a.parquet row 5"


def test_json_list_rows_have_lines(rows: Callable[..., list[Row]]) -> None:
    result = rows(a__json='\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n')
    assert [row.where for row in result] == ["a.json:3", "a.json:5", "a.json:6"]
    assert [row.values["a"] for row in result] == [1, 2, 3]


def test_long_texts_are_read(rows: Callable[..., list[Row]]) -> None:
    long = "lörem " * 900_000
    assert rows(a__jsonl=json.dumps({"t": long}))[0].values["t"] == long
    assert rows(a__csv=f't,u\n"{long}",1\n')[0].values == {"t": long, "u": "1"}


def test_place_of_a_row_has_no_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (row,) = read_rows(files(str(tmp_path / "a.jsonl")), folder=Path("elsewhere"))
    assert row.where == "a.jsonl:1"
