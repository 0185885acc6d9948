"""JSONL files: values survive, partial last lines are cut off, damaged lines are reported."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.child import run_in_child
from tests.support.errors import raises
from tests.support.json_values import json_values

from tunesmith.core.errors import DamagedFile, DoesNotFit
from tunesmith.core.jsonl import (
    cut_partial_line,
    json_line,
    read_growing,
    read_jsonl,
    read_whole_lines,
    whole_lines,
    write_jsonl,
)


@given(json_values)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_read_jsonl_returns_the_values_of_write_jsonl(tmp_path: Path, value: Any) -> None:
    write_jsonl(tmp_path / "x.jsonl", [value, value])
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [value, value]


@given(values=st.lists(json_values, max_size=4), cut=st.integers(0, 10_000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_read_whole_lines_cuts_off_a_partial_line_and_the_log_can_grow(
    tmp_path: Path, values: list[Any], cut: int
) -> None:
    path = tmp_path / "log.jsonl"
    whole = "".join(map(json_line, values)).encode()
    path.write_bytes(whole[:cut])
    lines = read_whole_lines(path)
    assert lines == values[: whole[:cut].count(b"\n")]
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line("next"))
    assert read_whole_lines(path) == [*lines, "next"]
    assert list(read_jsonl(path)) == [*lines, "next"]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert read_whole_lines(tmp_path / "log.jsonl") == list(whole_lines(tmp_path / "log.jsonl")) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [b"\0\0\0", b'{"a": ', b"\xff", b""])
@pytest.mark.parametrize(
    "read", [read_whole_lines, lambda path: list(read_jsonl(path)), lambda path: list(read_growing(path))]
)
def test_a_damaged_line_is_reported_with_its_number(tmp_path: Path, read: Callable[[Path], object], bad: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'"first"\n' + bad + b'\n"last"\n')
    with raises(DamagedFile, "damaged-file", where=f"{path}:2"):
        read(path)


def test_whole_lines_leaves_a_partial_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('"one"\n"tw')
    assert list(whole_lines(path)) == ['"one"\n']
    assert list(read_growing(path)) == ["one"]
    assert path.read_text() == '"one"\n"tw'


def test_write_jsonl_reports_a_full_disk(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with raises(DoesNotFit, "disk-full"):
            write_jsonl(tmp_path / "x.jsonl", ["x" * 100] * 50)

    assert run_in_child(work) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_write_jsonl_reports_a_full_device(tmp_path: Path) -> None:
    # Through a link: code that replaced the file would replace the device itself.
    (tmp_path / "full").symlink_to("/dev/full")
    with raises(DoesNotFit, "disk-full"):
        write_jsonl(tmp_path / "full", ["x"])


@pytest.mark.parametrize(
    ("content", "kept"), [(b"", b""), (b"par", b""), (b"a\n", b"a\n"), (b"a\nb\n" + b"c" * 200_000, b"a\nb\n")]
)
def test_cut_partial_line_keeps_whole_lines(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    cut_partial_line(path)
    assert path.read_bytes() == kept
