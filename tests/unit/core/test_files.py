"""Files and folders stay old or become new after a kill at any line, a full disk or an error; damage is found."""

import errno
import itertools
import json
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.child import run_in_child
from tests.support.errors import raises
from tests.support.json_values import LINE_BREAKS, json_values

from tunesmith.core import files
from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError
from tunesmith.core.files import (
    MANIFEST,
    check_folder,
    digest_file,
    digest_of,
    is_temporary,
    new_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    temporary_path,
    translate_enospc,
    without_temporary_names,
    write_json,
    write_text,
)

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


def fill(folder: Path, word: str) -> None:
    """Write two files, one of them in a subfolder."""
    (folder / "a.txt").write_text(word * 100)
    (folder / "inner").mkdir()
    (folder / "inner" / "b.jsonl").write_text(f'"{word}"\n')


def make(final: Path, word: str) -> None:
    with new_folder(final, word=word) as folder:
        fill(folder, word)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- kills ---


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


def test_an_error_inside_new_folder_keeps_the_old_folder(tmp_path: Path) -> None:
    final = tmp_path / "step"
    make(final, "old")
    with pytest.raises(FileExistsError), new_folder(final) as folder:
        fill(folder, (folder / "inner").mkdir() or "new")
    assert check_folder(final)["word"] == "old"
    assert names(tmp_path) == ["step"]


def test_new_folder_replaces_a_folder_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "step"
    make(final, "old")
    rmtree = files.shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if ".trash-" not in Path(path).name:
            rmtree(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(files.shutil, "rmtree", busy)
    make(final, "new")
    assert check_folder(final)["word"] == "new"


def test_new_folder_syncs_every_file_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "step"
    synced: set[int] = set()
    at_rename: list[tuple[Path, set[int]]] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), fsync(file))[1])
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (at_rename.append((target, set(synced))), rename(self, target))[1]
    )
    make(final, "new")
    [(target, before)] = at_rename
    assert target == final
    assert {path.stat().st_ino for path in [final, *final.rglob("*")]} <= before
    assert tmp_path.stat().st_ino in synced  # the rename itself, afterwards
    assert tmp_path.stat().st_ino not in before


def test_remove_leftovers_removes_temporary_names_only(tmp_path: Path) -> None:
    keep = [".env", ".x.tmp-", ".x.tmp-1234567", ".x.tmp-1234567g", "x.tmp-12345678", ".trash-12345678", "a.trash-0"]
    inner = tmp_path / "evaluate" / "base"
    inner.mkdir(parents=True)
    for folder in (tmp_path, inner):
        for name in (*keep, ".key.json.tmp-0a1b2c3d", ".b.trash-00000000"):
            (folder / name).touch()
        make(folder / ".step.tmp-deadbeef", "x")
        (folder / ".step.tmp-deadbeef" / ".x.tmp-deadbeef").touch()
    elsewhere = tmp_path / "elsewhere"
    make(elsewhere, "x")
    (tmp_path / ".link.tmp-0a1b2c3d").symlink_to(elsewhere)
    remove_leftovers(tmp_path)
    assert names(inner) == sorted(keep)
    assert names(tmp_path) == sorted([*keep, "elsewhere", "evaluate"])
    check_folder(elsewhere)
    remove_leftovers(tmp_path / "nowhere")


# --- damage ---


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    make(tmp_path / "step", "word")
    return tmp_path / "step"


def test_check_folder_returns_the_manifest(sealed: Path) -> None:
    manifest = check_folder(sealed)
    assert manifest["word"] == "word"
    assert manifest["files"]["a.txt"] == {"bytes": 400, "sha256": digest_file(sealed / "a.txt")}
    assert list(manifest["files"]) == ["a.txt", "inner/b.jsonl"]


@pytest.mark.parametrize("name", ["a.txt", "inner/b.jsonl"])
@pytest.mark.parametrize("index", [0, 3, -1])
def test_check_folder_finds_a_flipped_bit(sealed: Path, name: str, index: int) -> None:
    content = bytearray((sealed / name).read_bytes())
    content[index] ^= 1
    (sealed / name).write_bytes(content)
    with raises(DamagedFile, "damaged-file", digest_file(sealed / name)[:12], where=str(sealed / name)):
        check_folder(sealed)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda f: (f / "a.txt").unlink(), "a.txt"),
        (lambda f: (f / "a.txt").write_bytes((f / "a.txt").read_bytes()[:-1]), "a.txt"),
        (lambda f: (f / "a.txt").write_bytes(b""), "a.txt"),
        (lambda f: (f / "a.txt").write_bytes((f / "a.txt").read_bytes() + b"\n"), "a.txt"),
        (lambda f: (f / "inner" / "c").touch(), "inner/c"),
        (lambda f: (f / ".hidden").touch(), ".hidden"),
        (lambda f: (f / "inner" / MANIFEST).touch(), f"inner/{MANIFEST}"),
        (lambda f: (f / "a.txt").rename(f / "b.txt"), "a.txt"),
        (lambda f: (f / MANIFEST).unlink(), ""),
        (lambda f: (f / MANIFEST).write_text(""), MANIFEST),
        (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-9]), MANIFEST),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff{}"), MANIFEST),
        (lambda f: (f / MANIFEST).write_text("{}"), MANIFEST),
        (lambda f: (f / MANIFEST).write_text("[1]"), MANIFEST),
        (lambda f: (f / MANIFEST).write_text('{"files": ["a.txt"]}'), MANIFEST),
    ],
)
def test_check_folder_finds_missing_altered_and_extra_files(
    sealed: Path, change: Callable[[Path], object], where: str
) -> None:
    change(sealed)
    with raises(DamagedFile, "damaged-file", where=str(sealed / where)):
        check_folder(sealed)


# --- full disks ---


WRITERS: list[Callable[[Path], object]] = [
    lambda path: write_text(path, "x" * 5000),
    lambda path: write_json(path, ["x"] * 1000),
    lambda path: make(path, "x" * 50),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "rename", "replace", "mkdir"])
def test_a_full_disk_at_any_step_is_reported_with_the_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, write: Callable[[Path], object], step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    if step == "rename" and write is not WRITERS[2]:
        write(tmp_path / "out")  # files are put in place by `replace`
        return
    with raises(DoesNotFit, "disk-full", " GiB free") as caught:
        write(tmp_path / "out")
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(tmp_path))
    monkeypatch.undo()
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_keeps_the_old_file_or_folder(
    tmp_path: Path, write: Callable[[Path], object], before: bool
) -> None:
    final = tmp_path / "out"
    if before:
        make(final, "old") if write is WRITERS[2] else write_text(final, "old")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with raises(DoesNotFit, "disk-full"):
            write(final)

    assert run_in_child(work) == 0
    assert names(tmp_path) == ["out"][:before]
    if before:
        assert final.read_text() == "old" if final.is_file() else check_folder(final)["word"] == "old"


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
def test_out_of_space_errors_of_libraries_are_translated(tmp_path: Path, library: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    def save(path: Path) -> None:
        if library == "safetensors":
            save_file({"x": np.zeros(10_000)}, path)
        else:
            Tokenizer(models.BPE({f"word{i}": i for i in range(2000)}, [])).save(str(path))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with raises(DoesNotFit, "disk-full"), new_folder(tmp_path / "out") as folder:
            save(folder / "x")

    assert run_in_child(work) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "no"), ValueError("(os error 5)"), ValueError("28"),
     KeyboardInterrupt()],
)  # fmt: skip
def test_other_errors_are_not_translated(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_enospc(tmp_path / "out"):
        raise error
    assert caught.value is error


# --- values ---


@given(json_values)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_read_json_returns_the_value_of_write_json(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"x": -float("inf")}]])
def test_nan_and_infinity_are_refused_and_the_old_file_stays(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", "old")
    with pytest.raises(ValueError):  # noqa: PT011 (json words it)
        write_json(tmp_path / "x.json", value)
    with pytest.raises(ValueError):  # noqa: PT011 (json words it)
        digest_of(value)
    assert read_json(tmp_path / "x.json") == "old"
    assert names(tmp_path) == ["x.json"]


@given(json_values, st.randoms())
def test_digest_ignores_the_order_of_keys(value: Any, random: Any) -> None:
    assert digest_of(_shuffled(value, random)) == digest_of(value)


def _shuffled(value: Any, random: Any) -> Any:
    if isinstance(value, list):
        return [_shuffled(item, random) for item in value]
    if not isinstance(value, dict):
        return value
    items = [(key, _shuffled(item, random)) for key, item in value.items()]
    random.shuffle(items)
    return dict(items)


def test_digests_of_different_values_differ() -> None:
    values = [None, 0, 0.5, "", "0", [], {}, [[]], [0], ["a", "b"], ["b", "a"], ["ab"], {"a": "b"}, {"b": "a"}, False]
    values += [LINE_BREAKS, "\ud800", "\udfff", "\u00e9", "e\u0301"]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of(("a", 1)) == digest_of(["a", 1])  # a tuple becomes a list in JSON
    assert digest_of({"b": 1, "a": json.loads("2")}) == (
        "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    )


def test_write_text_refuses_folders_and_devices(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with raises(RecipeError, "wrong-path", where=str(path)):
            write_text(path, "text")
    assert sorted(tmp_path.iterdir()) == [folder, pipe]
    assert pipe.is_fifo()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_sealed_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "made") as folder:
            (folder / "deep").mkdir()
            for name in ("weights.safetensors", "deep/more.safetensors"):
                (folder / name).write_text("x")
                (folder / name).chmod(0o600)  # as safetensors writes them
            (folder / "sealed").write_text("x")
            (folder / "sealed").chmod(0o444)  # as the registry stores its objects
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert modes.pop("sealed") == 0o444
    assert set(modes.values()) == {0o666 & ~umask}


def test_temporary_names_are_recognised_and_removed_from_messages(tmp_path: Path) -> None:
    path = temporary_path(tmp_path / "step.1")
    assert path.parent == tmp_path
    assert is_temporary(path)
    assert not is_temporary(tmp_path / ".step.1.tmp-0")
    assert without_temporary_names(f"{path}/.x.json.tmp-0a1b2c3d") == f"{tmp_path}/step.1/x.json"
