"""Files that cannot be read end with an error that names the place, never with wrong rows."""

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

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.conftest import files, per_example, values

from tunesmith.core.errors import DataError
from tunesmith.data import json_file, text_file
from tunesmith.data.sources import Row, read_rows

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
