"""Files and folders are written whole or not at all, damage is found, and values keep their digests."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.errors import raises
from tests.support.json_values import LINE_BREAKS, json_values
from tests.support.sealed import fill, make, names

from tunesmith.core import files
from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import (
    MANIFEST,
    check_folder,
    digest_file,
    digest_of,
    is_temporary,
    new_folder,
    read_json,
    remove_leftovers,
    temporary_path,
    without_temporary_names,
    write_json,
    write_text,
)

# --- folders ---


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
