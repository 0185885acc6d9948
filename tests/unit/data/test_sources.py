"""Rows as they are in the files, and every way in which a file can be wrong."""

import codecs
import csv
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data import json_file, local_files, text_file
from tunesmith.data.sources import Row, digest_sources, missing_column_error, read_rows
from tunesmith.recipe.data_source import FileSource, GeneratedSource
from tunesmith.tasks.base import Written, cell

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
COMMIT = "a" * 40
per_example = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def files(*names: str) -> FileSource:
    return FileSource(file=names[0] if len(names) == 1 else names)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Row]]:
    """Write files of the given names and contents; read them as one source."""

    def write_and_read(**contents: bytes | str) -> list[Row]:
        names = [name.replace("__", ".") for name in contents]
        for name, content in zip(names, contents.values(), strict=True):
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_rows(files(*names), folder=tmp_path))

    return write_and_read


def values(found: list[Row]) -> list[dict[str, Any]]:
    return [row.values for row in found]


# --- values and places ---


def test_json_values_are_exact(rows: Callable[..., list[Row]]) -> None:
    told: list[dict[str, Any]] = [
        {"a": 1, "b": {"x": 1}},
        {"a": "1", "b": {"y": None}, "only here": [1, "two", None, {}]},
        {"a": 12345678901234567890123456789, "b": None},
        {"a": 0.1, "b": {"x": True}, "text": "NA \u2028 😀 \x00 \\"},
        {},
    ]
    found = rows(a__jsonl="".join(json.dumps(row) + "\n" for row in told))
    assert values(found) == told
    assert [list(row.values) for row in found] == [list(row) for row in told]
    assert [type(row.values["a"]) for row in found[:4]] == [int, str, int, Written]


NUMBERS = [
    "12.50", "1E3", "1e+3", "10000000000000000.0", "-0", "-0.0", "0", "0.10", "1e400", "-1e400", "5e-400", "7",
    "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_numbers_and_booleans_keep_the_text_of_the_file(rows: Callable[..., list[Row]], name: str) -> None:
    texts = [*NUMBERS, "true", "false"]
    lines = [f'{{"c": {text}}}' for text in texts]
    whole = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    found = values(rows(**{name.replace(".", "__"): whole}))
    assert [cell(row, "c") for row in found] == texts
    # Rows are pickled to reach worker processes.
    assert [cell(pickle.loads(pickle.dumps(row)), "c") for row in found] == texts


def test_a_written_number_is_still_a_number(rows: Callable[..., list[Row]]) -> None:
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
    found = values(list(read_rows(files("a.csv"), folder=tmp_path)))
    assert found == [dict(zip("abc", row, strict=True)) for row in table]


def test_a_row_stands_where_it_starts(rows: Callable[..., list[Row]]) -> None:
    found = rows(a__csv='a,b\n1,"x\ny\r\nz"\n\n2,"p\n"\n3,q', b__jsonl='\n{"a": 1}\r\n\n{"a": 2}')
    assert [row.where for row in found] == ["a.csv:2", "a.csv:6", "a.csv:8", "b.jsonl:2", "b.jsonl:4"]
    assert [row.number for row in found] == [1, 2, 3, 4, 5]
    assert found[0].values == {"a": "1", "b": "x\ny\r\nz"}
    assert found[4].values == {"a": 2}


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    told = [{"q": "ä 1", "a": "x\ty"}, {"q": "2", "a": ""}]
    table = pa.Table.from_pylist(told)
    pq.write_table(table, tmp_path / "t.parquet")
    for name, new in {"stream.arrow": pa.ipc.new_stream, "file.arrow": pa.ipc.new_file}.items():
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    texts = {
        "t.csv": "q,a\nä 1,x\ty\n2,\n",
        "crlf.csv": '\ufeff"q",a\r\nä 1,x\ty\r\n2,\r\n',
        "t.tsv": 'q\ta\nä 1\t"x\ty"\n2\t\n',
        "t.json": json.dumps(told, indent=1),
        "lines.json": "\ufeff" + "\n".join(json.dumps(row) for row in told),
        "t.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in told) + "\r\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "glob [1]*?#%20.csv").write_text(texts["t.csv"])
    read = {path.name: values(list(read_rows(files(path.name), folder=tmp_path))) for path in tmp_path.iterdir()}
    assert len(read) == 16
    assert {name: found for name, found in read.items() if found != told} == {}


def test_parquet_rows_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    monkeypatch.setattr(local_files, "_BATCH", 2)
    told = [{"n": n, "nested": {"x": [n, None]}, "blob": bytes([n])} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(told), tmp_path / "a.parquet")
    found = list(read_rows(files("a.parquet"), folder=tmp_path))
    assert values(found) == told
    assert found[4].where == "a.parquet row 5"


def test_json_list_rows_have_lines(rows: Callable[..., list[Row]]) -> None:
    found = rows(a__json='\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n')
    assert [row.where for row in found] == ["a.json:3", "a.json:5", "a.json:6"]
    assert [row.values["a"] for row in found] == [1, 2, 3]


def test_long_texts_are_read(rows: Callable[..., list[Row]]) -> None:
    long = "lörem " * 900_000
    assert rows(a__jsonl=json.dumps({"t": long}))[0].values["t"] == long
    assert rows(a__csv=f't,u\n"{long}",1\n')[0].values == {"t": long, "u": "1"}


def test_an_absolute_path_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (row,) = read_rows(files(str(tmp_path / "a.jsonl")), folder=Path("elsewhere"))
    assert row.where == "a.jsonl:1"


# --- what is wrong, and where ---

WRONG = {
    "broken": ("a.jsonl", b'{"a": 1}\n' * 712 + b'{"a": 1,, "b"}\n{"a": 1}\n', "a.jsonl:713: is not .*column 9.*,, "),
    "cut off": ("a.jsonl", b'{"a": 1}\n{"a": "lon', "a.jsonl:2: .*Unterminated.*\n.*cut off"),
    "two in a line": ("a.jsonl", b'{"a": 1} {"a": 2}\n', "a.jsonl:1: .*Extra data at column 10"),
    "list": ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl:2: is a list, not an object"),
    "null": ("a.jsonl", b"null\n", "a.jsonl:1: is null, not an object"),
    "repeated key": ("a.jsonl", b'{}\n{"b": {"k": 1, "k": 1}}\n', "a.jsonl:2: has the key 'k' twice"),
    "NaN": ("a.jsonl", b'{}\n{"a": [NaN]}\n', "a.jsonl:2: holds NaN"),
    "infinity": ("a.jsonl", b'{"a": -Infinity}\n', "a.jsonl:1: holds -Infinity"),
    "nested": ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "a.jsonl:1: is nested too deeply"),
    "surrogate": ("a.jsonl", b'{}\n{"a": ["\\ud800"]}\n', "a.jsonl:2: holds half of a surrogate pair"),
    "surrogate key": ("a.jsonl", b'{"\\uDFFF": 1}\n', "a.jsonl:1: holds half of a surrogate pair"),
    "control": ("a.jsonl", b'{"a": "x\ty"}\n', "a.jsonl:1: .*control character"),
    "NUL": ("a.jsonl", b'{}\n{"a": "\0"}\n', "a.jsonl:2: holds a NUL byte at byte offset 10"),
    "Latin-1": ("a.jsonl", '{"é": 1}\n'.encode() + b'{"a": "\xe9"}\n', "a.jsonl:2: .*0xe9 at byte offset 17\n.*iconv"),
    "UTF-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), "a.jsonl: is UTF-16LE text.*\n.*iconv -f UTF-16LE"),
    "UTF-16BE": ("a.csv", codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "a.csv: is UTF-16BE text"),
    "UTF-32": ("a.csv", "a,b".encode("utf-32"), "a.csv: is UTF-32LE text"),
    "UTF-16 unmarked": ("a.csv", "a,b\n".encode("utf-16-le"), "a.csv:1: holds a NUL byte at byte offset 1"),
    "empty": ("a.jsonl", b"", "a.jsonl: is empty"),
    "only a mark": ("a.jsonl", codecs.BOM_UTF8, "a.jsonl: holds no rows"),
    "blank": ("a.jsonl", b"\n \n", "a.jsonl: holds no rows"),
    "empty CSV": ("a.csv", b"", "a.csv: is empty"),
    "header only": ("a.csv", b"a,b\n", "a.csv: has a header but no rows"),
    "header and blanks": ("a.csv", b"a,b\n\n\n", "a.csv: has a header but no rows"),
    "blank header": ("a.csv", b"\n1,2\n", "a.csv:1: the first line is blank"),
    "repeated column": ("a.csv", b"a,b,a\n1,2,3\n", "a.csv:1: the header has the column 'a' more than once"),
    "too many cells": ("a.csv", b'a,b\n"x\n",2\n1,2,3\n', "a.csv:4: has 3 cells, but the header names 2"),
    "too few cells": ("a.csv", b"a,b\n1,2\n1\n", "a.csv:3: has 1 cell, but the header names 2"),
    "empty surplus": ("a.csv", b"a,b\n1,2,\n", "a.csv:2: has 3 cells"),
    "open quote": ("a.csv", b'a,b\n"1\n2",x\n3,"y\nz\n4,5\n', "a.csv:4: the quote that opens here is never closed"),
    "open quote later": ("a.csv", b'a,b\n"1\n2","x""\n3,4', "a.csv:3: the quote that opens here is never closed"),
    "quote shut by next": ("a.csv", b'a,b\n"x,1\n"y",2\n', "a.csv:2: the quote that opens here closes in line 3"),
    "quote not doubled": ("a.csv", b'a,b\n1,"say "hi""\n', "a.csv:2: the quote that opens here closes in line 2"),
    "carriage return": ("a.csv", b"a,b\n1,2\nx\ry,2\n", "a.csv:3: holds a bare carriage return"),
    "old Mac": ("a.csv", b"a,b\r1,2\r", "a.csv:1: holds a bare carriage return"),
    "double CR": ("a.csv", b"a,b\n1,2\r\r\n", "a.csv:2: holds a bare carriage return"),
    "CSV bytes": ("a.csv", b"a,b\n1,2\n\xff,2\n", "a.csv:3: is not UTF-8: byte 0xff at byte offset 8"),
    "CSV NUL": ("a.csv", b"a,b\n1,2\nx\0,2\n", "a.csv:3: holds a NUL byte at byte offset 9"),
    "a document": ("a.json", b'{"data": [{"a": 1}]}', "a.json: is one object.*\n.*under 'data'"),
    "a long document": ("a.json", b'{\n "version": 1,\n "data": []\n}', "a.json: is one object, not a list of rows"),
    "empty list": ("a.json", b"[ ]\n", "a.json: holds no rows"),
    "list of texts": ("a.json", b'[\n{"a": 1},\n"b"\n]', "a.json:3: is a text, not an object"),
    "list not closed": ("a.json", b'[{"a": 1},\n{"a": 2}\n', "a.json:2: .*never closed"),
    "list cut off": ("a.json", b'[{"a": 1},\n{"a": ', "a.json:2: .*Expecting value at column 6"),
    "no comma": ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: .*Expecting ',' or '\\]' at column 1"),
    "last comma": ("a.json", b'[{"a": 1},\n]', "a.json:2: .*Expecting value at column 1"),
    "after the list": ("a.json", b'[{"a": 1}]\n\nx', "a.json:3: .*Extra data at column 1"),
    "deep in a list": ("a.json", b'[{"a": 1},\n{"b": 2,\n "c": oops}]', "a.json:3: .*value at column 7: .*oops"),
    "lines in .json": ("a.json", b'{"a": 1}\n{"a": oops}\n', "a.json:2: .*Expecting value"),
    "gzip": ("a.jsonl", gzip.compress(b"{}"), "a.jsonl: is compressed with gzip"),
    "cut gzip": ("a.csv.gz", gzip.compress(b"a,b\n" + os.urandom(999).hex().encode())[:-40], "a.csv.gz: cannot"),
    "no gzip": ("a.jsonl.gz", b'{"a": 1}\n', "a.jsonl.gz: cannot be read .*[Nn]ot a gzip"),
    "spreadsheet": ("a.csv", b"PK\x03\x04xx", "a.csv: is a ZIP archive or an office document"),
    "empty Parquet": ("a.parquet", b"", "a.parquet: is empty"),
    "no Parquet": ("a.parquet", b"PAR1 not really PAR1", "a.parquet: cannot be read"),
    "no Arrow": ("a.arrow", b"garbage" * 9, "a.arrow: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, expected = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        list(read_rows(files(name), folder=tmp_path))
    assert caught.value.exit_code == 3
    assert str(tmp_path) not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).startswith(expected.split(": ")[0] + ": ")


def test_the_rows_before_a_broken_line_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"\n')
    found = read_rows(files("a.jsonl"), folder=tmp_path)
    assert [next(found).values["a"], next(found).values["a"]] == [1, 2]
    with pytest.raises(DataError, match=r"a.jsonl:3"):
        next(found)


def test_of_a_long_line_the_part_around_the_error_is_shown(rows: Callable[..., list[Row]]) -> None:
    with pytest.raises(DataError) as caught:
        rows(a__jsonl='{"a": "' + "x" * 5000 + '", here}' + " " * 5000)
    shown = caught.value.message.split(": ")[-1]
    assert '", here}' in shown
    assert len(shown) <= 80


def test_parquet_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match=name):
            list(read_rows(files(name), folder=tmp_path))


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "viggo-train.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"vigo-train.csv: there is no such file\n.*did you mean viggo-train.csv"):
        list(read_rows(files("vigo-train.csv"), folder=tmp_path))
    with pytest.raises(DataError, match=r"there are: viggo-train.csv"):
        list(read_rows(files("other.jsonl"), folder=tmp_path))
    with pytest.raises(DataError, match="its folder does not exist"):
        list(read_rows(files("data/viggo-train.csv"), folder=tmp_path))


def test_all_names_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"b.jsonl: there is no such file"):
        next(read_rows(files("a.jsonl", "b.jsonl"), folder=tmp_path))


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.jsonl").write_text("{}")
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    with pytest.raises(DataError, match=r"data: is a folder.*\n.*data/x.jsonl"):
        list(read_rows(files("data"), folder=tmp_path))
    with pytest.raises(DataError, match=r"pipe.jsonl: is not a regular file"):
        list(read_rows(files("pipe.jsonl"), folder=tmp_path))
    for name in ("a\0.csv", "~nobody-of-this-name/a.csv", ""):
        with pytest.raises(DataError):
            list(read_rows(files(name), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.pkl", "a.txt", "a.zip", "a", "a.parquet.gz", "a.csv.bz2"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(
        DataError, match=r"is in a format that is not read(.|\n)*read are \.csv, \.tsv, \.json, \.jsonl"
    ):
        list(read_rows(files(name), folder=tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read .*[Pp]ermission"):
        list(read_rows(files("a.jsonl"), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"a": 1}\n' * 9)
    found = read_rows(files(name), folder=tmp_path)
    next(found)
    with path.open("a") as file:
        file.write('{"a": 1}\n')
    with pytest.raises(DataError, match=f"{name}: changed while it was read"):
        list(found)


def test_a_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *_: Any) -> None:
        raise OSError(116, "Stale file handle")

    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read .Stale file handle"):
        list(read_rows(files("a.jsonl"), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_bomb_does_not_fill_the_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 10_000)
    (tmp_path / name).write_bytes(gzip.compress(b"[" + b" " * 20_000))
    with pytest.raises(DataError, match=f"{name}:1: the line is longer"):
        list(read_rows(files(name), folder=tmp_path))


def test_a_document_has_a_limit(rows: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MAX_DOCUMENT_CHARACTERS", 100)
    with pytest.raises(DataError, match=r"a.json: is too large for a JSON list\n.*JSONL"):
        rows(a__json="[" + "{},\n" * 100 + "{}]")


# --- fuzz ---

GOOD = {
    "a.jsonl": b'{"a": 1, "b": "x"}\n{"a": -2.5e3, "b": "\\u00e9"}\r\n{"a": null, "b": "caf\xc3\xa9"}\n',
    "a.json": b'[{"a": 1, "b": "x"},\n {"a": [], "b": "\\n"}]\n',
    "a.csv": b'a,b\n1,"x\ny"\n"2""",caf\xc3\xa9\r\n\n3,\n',
}
LIKELY = b'"\n\r,{}[]\\:0e-\0\xff\xc3 u'
edits = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 2), st.sampled_from(LIKELY) | st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    changed = bytearray(content)
    for place, kind, byte in changes:
        at = place % (len(changed) + 1)
        changed[at : at + (kind > 0)] = bytes([byte]) if kind < 2 else b""  # insert, replace or delete
    return bytes(changed)


@pytest.mark.parametrize("name", GOOD)
@given(changes=edits)
@settings(per_example, max_examples=100)
def test_mutated_files_give_rows_or_data_errors(tmp_path: Path, name: str, changes: list[tuple[int, int, int]]) -> None:
    content = mutated(GOOD[name], changes)
    (tmp_path / name).write_bytes(content)
    try:
        found = list(read_rows(files(name), folder=tmp_path))
    except DataError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert re.match(re.escape(name) + r"(:\d+)?: \w", told)
        return
    text = content.decode("utf-8-sig")
    if name == "a.csv":
        table = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        expected = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    elif name == "a.json":
        expected = json.loads(text)
    else:
        expected = [json.loads(line) for line in text.split("\n") if line.strip()]
    assert values(found) == expected
    lines = [int(row.where.split(":")[1]) for row in found]
    assert lines == sorted(lines)
    assert lines[-1] <= text.count("\n") + 1


# --- the generator ---


def test_generated_rows_are_numbered(tmp_path: Path) -> None:
    source = GeneratedSource(generated="shop-sql", rows=12, seed=3)
    found = list(read_rows(source, folder=tmp_path))
    assert len(found) == 12
    assert (found[11].number, found[11].where) == (12, "shop-sql row 12")
    assert values(found) == values(list(read_rows(source, folder=tmp_path)))


# --- digests ---


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


# --- columns, and the rest ---


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
