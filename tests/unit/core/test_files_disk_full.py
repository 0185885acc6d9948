"""A full disk is reported with the free space, and keeps the old file or folder."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.child import run_in_child
from tests.support.errors import raises
from tests.support.sealed import make, names

from tunesmith.core.errors import DoesNotFit
from tunesmith.core.files import check_folder, new_folder, translate_enospc, write_json, write_text

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
