"""A writer of files or folders that is killed at any line leaves the old version or the new one."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.support.child import run_in_child
from tests.support.sealed import make, names

from tunesmith.core import files
from tunesmith.core.files import check_folder, remove_folder, remove_leftovers, write_text

KILLED = 9


def killed_at_every_line(work: Callable[[], object]) -> Iterator[bool]:
    """Run `work` in one child after another, each killed one line of core/files.py later; yield whether it finished."""
    for lines in itertools.count(1):
        code = run_in_child(lambda lines=lines: (sys.settrace(_killer(lines)), work()))
        assert code in (0, KILLED)
        yield code == 0
        if code == 0:
            assert lines > 3, "the tracer was not called"
            return


def _killer(lines: int) -> Callable[[FrameType, str, Any], Any]:
    seen: set[tuple[str, int]] = set()  # repeated lines count once

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            seen.add((frame.f_code.co_name, frame.f_lineno))
        if len(seen) == lines:
            os._exit(KILLED)
        return trace

    return trace


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync, which takes most of the time and matters only in a power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("before", [None, "old"])
def test_write_text_killed_at_any_line_leaves_the_old_or_the_new_file(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "x.txt"
    seen = set()
    if before:
        path.write_text(before)
    for done in killed_at_every_line(lambda: write_text(path, "new" * 9999)):
        seen.add(path.read_text() if path.exists() else None)
        assert seen <= {before, "new" * 9999}
        assert not done or path.read_text() == "new" * 9999
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["x.txt"][: path.exists()]
        path.unlink(missing_ok=True)
        if before:
            path.write_text(before)
    assert seen == {before, "new" * 9999}


@pytest.mark.slow
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("before", [None, "old"])
def test_new_folder_killed_at_any_line_leaves_a_whole_folder_or_none(tmp_path: Path, before: str | None) -> None:
    final = tmp_path / "step"
    seen = set()
    if before:
        make(final, before)
    for done in killed_at_every_line(lambda: make(final, "new")):
        word = check_folder(final)["word"] if final.exists() else None
        seen.add(word)
        assert not done or word == "new"
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["step"][: final.exists()]
        if final.exists():
            remove_folder(final)
        if before:
            make(final, before)
    assert seen == {before, None, "new"}


def test_remove_folder_killed_at_any_line_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    final = tmp_path / "step"
    make(final, "old")
    for _ in killed_at_every_line(lambda: remove_folder(final)):
        if final.exists():
            check_folder(final)
        else:
            make(final, "old")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["step"]
