"""Malformed files raise an error with the file and line, and never give wrong rows."""

import codecs
import csv
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises
from tests.unit.data.conftest import files, per_example, values

from tunesmith.core.errors import DataError
from tunesmith.data import json_file, text_file
from tunesmith.data.sources import Row, read_rows

# What is wrong: (file, its content, code, place, values that the error names).
WRONG: dict[str, tuple[str, bytes, str, str, tuple[object, ...]]] = {
    "broken": ("a.jsonl", b'{"a": 1}\n' * 712 + b'{"a": 1,, "b"}\n{"a": 1}\n', "invalid-json", "a.jsonl:713",
               ("column 9", ",, ")),
    "cut off": ("a.jsonl", b'{"a": 1}\n{"a": "lon', "invalid-json", "a.jsonl:2", ("Unterminated", "cut off")),
    "two per line": ("a.jsonl", b'{"a": 1} {"a": 2}\n', "invalid-json", "a.jsonl:1", ("Extra data", "column 10")),
    "list": ("a.jsonl", b'{"a": 1}\n[1]\n', "not-an-object", "a.jsonl:2", ("list",)),
    "null": ("a.jsonl", b"null\n", "not-an-object", "a.jsonl:1", ("null",)),
    "repeated key": ("a.jsonl", b'{}\n{"b": {"k": 1, "k": 1}}\n', "invalid-json", "a.jsonl:2", ("'k'",)),
    "NaN": ("a.jsonl", b'{}\n{"a": [NaN]}\n', "invalid-json", "a.jsonl:2", ("NaN",)),
    "infinity": ("a.jsonl", b'{"a": -Infinity}\n', "invalid-json", "a.jsonl:1", ("-Infinity",)),
    "nested": ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "invalid-json", "a.jsonl:1", ("nested",)),
    "surrogate": ("a.jsonl", b'{}\n{"a": ["\\ud800"]}\n', "invalid-json", "a.jsonl:2", ("surrogate",)),
    "surrogate key": ("a.jsonl", b'{"\\uDFFF": 1}\n', "invalid-json", "a.jsonl:1", ("surrogate",)),
    "control": ("a.jsonl", b'{"a": "x\ty"}\n', "invalid-json", "a.jsonl:1", ("control character",)),
    "NUL": ("a.jsonl", b'{}\n{"a": "\0"}\n', "encoding", "a.jsonl:2", ("NUL", "offset 10")),
    "Latin-1": ("a.jsonl", '{"é": 1}\n'.encode() + b'{"a": "\xe9"}\n', "encoding", "a.jsonl:2",
                ("0xe9", "offset 17", "iconv")),
    "UTF-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), "encoding", "a.jsonl", ("UTF-16LE", "iconv -f UTF-16LE")),
    "UTF-16BE": ("a.csv", codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "encoding", "a.csv", ("UTF-16BE",)),
    "UTF-32": ("a.csv", "a,b".encode("utf-32"), "encoding", "a.csv", ("UTF-32LE",)),
    "UTF-16 unmarked": ("a.csv", "a,b\n".encode("utf-16-le"), "encoding", "a.csv:1", ("NUL", "offset 1")),
    "empty": ("a.jsonl", b"", "no-rows", "a.jsonl", ()),
    "only a mark": ("a.jsonl", codecs.BOM_UTF8, "no-rows", "a.jsonl", ()),
    "blank": ("a.jsonl", b"\n \n", "no-rows", "a.jsonl", ()),
    "empty CSV": ("a.csv", b"", "no-rows", "a.csv", ()),
    "header only": ("a.csv", b"a,b\n", "no-rows", "a.csv", ("header",)),
    "header and blanks": ("a.csv", b"a,b\n\n\n", "no-rows", "a.csv", ("header",)),
    "blank header": ("a.csv", b"\n1,2\n", "invalid-csv", "a.csv:1", ("columns",)),
    "repeated column": ("a.csv", b"a,b,a\n1,2,3\n", "duplicate-column", "a.csv:1", ("'a'",)),
    "too many cells": ("a.csv", b'a,b\n"x\n",2\n1,2,3\n', "invalid-csv", "a.csv:4", (3, 2)),
    "too few cells": ("a.csv", b"a,b\n1,2\n1\n", "invalid-csv", "a.csv:3", (1, 2)),
    "empty surplus": ("a.csv", b"a,b\n1,2,\n", "invalid-csv", "a.csv:2", (3,)),
    "open quote": ("a.csv", b'a,b\n"1\n2",x\n3,"y\nz\n4,5\n', "invalid-csv", "a.csv:4", ("never closed",)),
    "open quote later": ("a.csv", b'a,b\n"1\n2","x""\n3,4', "invalid-csv", "a.csv:3", ("never closed",)),
    "quote closed by next": ("a.csv", b'a,b\n"x,1\n"y",2\n', "invalid-csv", "a.csv:2", ("line 3",)),
    "quote not doubled": ("a.csv", b'a,b\n1,"say "hi""\n', "invalid-csv", "a.csv:2", ("line 2",)),
    "carriage return": ("a.csv", b"a,b\n1,2\nx\ry,2\n", "invalid-csv", "a.csv:3", ("carriage return",)),
    "old Mac": ("a.csv", b"a,b\r1,2\r", "invalid-csv", "a.csv:1", ("carriage return",)),
    "double CR": ("a.csv", b"a,b\n1,2\r\r\n", "invalid-csv", "a.csv:2", ("carriage return",)),
    "CSV bytes": ("a.csv", b"a,b\n1,2\n\xff,2\n", "encoding", "a.csv:3", ("0xff", "offset 8")),
    "CSV NUL": ("a.csv", b"a,b\n1,2\nx\0,2\n", "encoding", "a.csv:3", ("NUL", "offset 9")),
    "a document": ("a.json", b'{"data": [{"a": 1}]}', "not-an-object", "a.json", ("'data'",)),
    "a long document": ("a.json", b'{\n "version": 1,\n "data": []\n}', "not-an-object", "a.json", ("list",)),
    "empty list": ("a.json", b"[ ]\n", "no-rows", "a.json", ()),
    "list of strings": ("a.json", b'[\n{"a": 1},\n"b"\n]', "not-an-object", "a.json:3", ("string",)),
    "list not closed": ("a.json", b'[{"a": 1},\n{"a": 2}\n', "invalid-json", "a.json:2", ("never closed",)),
    "list cut off": ("a.json", b'[{"a": 1},\n{"a": ', "invalid-json", "a.json:2", ("column 6",)),
    "no comma": ("a.json", b'[{"a": 1}\n{"a": 2}]', "invalid-json", "a.json:2", ("','", "column 1")),
    "last comma": ("a.json", b'[{"a": 1},\n]', "invalid-json", "a.json:2", ("column 1",)),
    "after the list": ("a.json", b'[{"a": 1}]\n\nx', "invalid-json", "a.json:3", ("Extra data", "column 1")),
    "deep in a list": ("a.json", b'[{"a": 1},\n{"b": 2,\n "c": oops}]', "invalid-json", "a.json:3",
                       ("column 7", "oops")),
    "lines in .json": ("a.json", b'{"a": 1}\n{"a": oops}\n', "invalid-json", "a.json:2", ("oops",)),
    "gzip": ("a.jsonl", gzip.compress(b"{}"), "unsupported-format", "a.jsonl", ("gzip", ".gz")),
    "cut gzip": ("a.csv.gz", gzip.compress(b"a,b\n" + os.urandom(999).hex().encode())[:-40], "unreadable", "a.csv.gz",
                 ()),
    "no gzip": ("a.jsonl.gz", b'{"a": 1}\n', "unreadable", "a.jsonl.gz", ("ot a gzip",)),
    "zstd": ("a.jsonl", pa.Codec("zstd").compress(b"{}", asbytes=True), "unsupported-format", "a.jsonl", (".zst",)),
    "cut zstd": ("a.csv.zst", pa.Codec("zstd").compress(b"a,b\n" + os.urandom(999), asbytes=True)[:-40], "unreadable",
                 "a.csv.zst", ("runcated",)),
    "no zstd": ("a.jsonl.zst", b'{"a": 1}\n', "unreadable", "a.jsonl.zst", ()),
    "empty zstd": ("a.jsonl.zst", b"", "no-rows", "a.jsonl.zst", ()),
    "spreadsheet": ("a.csv", b"PK\x03\x04xx", "unsupported-format", "a.csv", ("ZIP",)),
    "empty Parquet": ("a.parquet", b"", "no-rows", "a.parquet", ()),
    "no Parquet": ("a.parquet", b"PAR1 not really PAR1", "unreadable", "a.parquet", ()),
    "no Arrow": ("a.arrow", b"garbage" * 9, "unreadable", "a.arrow", ()),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_malformed_file_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    name, content, code, where, named = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with raises(DataError, code, *named, where=where) as caught:
        list(read_rows(files(name), folder=tmp_path))
    assert caught.value.where == where, "a path relative to the recipe"
    assert len(str(caught.value)) < 600


def test_rows_before_a_malformed_line_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"\n')
    result = read_rows(files("a.jsonl"), folder=tmp_path)
    assert [next(result).values["a"], next(result).values["a"]] == [1, 2]
    with raises(DataError, "invalid-json", where="a.jsonl:3"):
        next(result)


def test_error_shows_the_part_of_a_long_line_around_it(rows: Callable[..., list[Row]]) -> None:
    with raises(DataError, "invalid-json") as caught:
        rows(a__jsonl='{"a": "' + "x" * 5000 + '", here}' + " " * 5000)
    shown = caught.value.message.split(": ")[-1]
    assert '", here}' in shown
    assert len(shown) <= 80


def test_parquet_with_duplicate_column_names_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with raises(DataError, "unreadable", where=name):
            list(read_rows(files(name), folder=tmp_path))


def test_missing_file_error_suggests_the_closest_name(tmp_path: Path) -> None:
    (tmp_path / "viggo-train.csv").write_text("a\n1\n")
    with raises(DataError, "not-found", "did you mean viggo-train.csv", where="vigo-train.csv"):
        list(read_rows(files("vigo-train.csv"), folder=tmp_path))
    with raises(DataError, "not-found", "viggo-train.csv", where="other.jsonl"):
        list(read_rows(files("other.jsonl"), folder=tmp_path))
    with raises(DataError, "not-found", "folder", where="data/viggo-train.csv"):
        list(read_rows(files("data/viggo-train.csv"), folder=tmp_path))


def test_all_files_are_checked_before_the_first_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with raises(DataError, "not-found", where="b.jsonl"):
        next(read_rows(files("a.jsonl", "b.jsonl"), folder=tmp_path))


def test_pipe_and_impossible_names_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would block forever
    with raises(DataError, "wrong-path", where="pipe.jsonl"):
        list(read_rows(files("pipe.jsonl"), folder=tmp_path))
    for name in ("a\0.csv", "~nobody-of-this-name/a.csv", ""):
        with pytest.raises(DataError):
            list(read_rows(files(name), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.pkl", "a.txt", "a.zip", "a", "a.parquet.gz", "a.arrow.zst", "a.csv.bz2"])
def test_unsupported_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with raises(DataError, "unsupported-format", ".csv, .tsv, .json, .jsonl", where=name):
        list(read_rows(files(name), folder=tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.jsonl").chmod(0)
    with raises(DataError, "unreadable", "ermission", where="a.jsonl"):
        list(read_rows(files("a.jsonl"), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_file_that_changes_during_reading_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"a": 1}\n' * 9)
    result = read_rows(files(name), folder=tmp_path)
    next(result)
    with path.open("a") as file:
        file.write('{"a": 1}\n')
    with raises(DataError, "changed-file", where=name):
        list(result)


def test_disk_error_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *_: Any) -> None:
        raise OSError(116, "Stale file handle")

    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.setattr(Path, "open", fail)
    with raises(DataError, "unreadable", "Stale file handle", where="a.jsonl"):
        list(read_rows(files("a.jsonl"), folder=tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_gzip_bomb_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 10_000)
    (tmp_path / name).write_bytes(gzip.compress(b"[" + b" " * 20_000))
    with raises(DataError, "line-too-long", where=f"{name}:1"):
        list(read_rows(files(name), folder=tmp_path))


def test_too_large_json_list_is_refused(rows: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MAX_DOCUMENT_CHARACTERS", 100)
    with raises(DataError, "too-large", "JSONL", where="a.json"):
        rows(a__json="[" + "{},\n" * 100 + "{}]")


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
    for position, kind, byte in changes:
        start = position % (len(changed) + 1)
        changed[start : start + (kind > 0)] = bytes([byte]) if kind < 2 else b""  # insert, replace or delete
    return bytes(changed)


@pytest.mark.parametrize("name", GOOD)
@given(changes=edits)
@settings(per_example, max_examples=100)
def test_mutated_file_gives_exact_rows_or_a_data_error(
    tmp_path: Path, name: str, changes: list[tuple[int, int, int]]
) -> None:
    content = mutated(GOOD[name], changes)
    (tmp_path / name).write_bytes(content)
    place = None
    try:
        result = list(read_rows(files(name), folder=tmp_path))
    except DataError as error:
        place = error.where or ""
    if place is not None:
        assert re.fullmatch(re.escape(name) + r"(:\d+)?", place)
        return
    text = content.decode("utf-8-sig")
    if name == "a.csv":
        table = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        expected = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    elif name == "a.json":
        expected = json.loads(text)
    else:
        expected = [json.loads(line) for line in text.split("\n") if line.strip()]
    assert values(result) == expected
    lines = [int(row.where.split(":")[1]) for row in result]
    assert lines == sorted(lines)
    assert lines[-1] <= text.count("\n") + 1
