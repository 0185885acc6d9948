"""What is on the disk after a kill at any line, a full disk, a flipped bit: old or new, or an error that says so."""

import errno
import itertools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core import files
from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError, TunesmithError
from tunesmith.core.files import (
    MANIFEST,
    check_folder,
    digest_file,
    digest_of,
    new_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    translate_enospc,
    write_json,
    write_text,
)
from tunesmith.core.jsonl import json_line, read_jsonl, read_whole_lines, write_jsonl
from tunesmith.core.locks import exclusive_lock, lock_holder

KILLED = 9
# To `str.splitlines` each of these ends a line; in JSON they stand for themselves.
LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x1cf\rg\nh"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | st.just(LINE_ENDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process; return its exit status, 1 where it raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_every_line(work: Callable[[], object]) -> Iterator[bool]:
    """Run `work` in child after child, each killed one line of core/files.py later; say whether it came to its end."""
    for lines in itertools.count(1):
        status = in_child(lambda lines=lines: (sys.settrace(_killer(lines)), work()))
        assert status in (0, KILLED)
        yield status == 0
        if status == 0:
            assert lines > 3, "the tracer saw nothing"
            return


def _killer(lines: int) -> Callable[[FrameType, str, Any], Any]:
    seen: set[tuple[str, int]] = set()  # a line that comes again is counted once

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
    """Write two files, one of them in a folder of its own."""
    (folder / "a.txt").write_text(word * 100)
    (folder / "inner").mkdir()
    (folder / "inner" / "b.jsonl").write_text(f'"{word}"\n')


def make(final: Path, word: str) -> None:
    with new_folder(final, word=word) as folder:
        fill(folder, word)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- killed ---


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a power cut could tell from its absence, and what takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_old_or_new_wherever_its_writer_is_killed(tmp_path: Path, before: str | None) -> None:
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
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("before", [None, "old"])
def test_a_folder_is_whole_or_absent_wherever_its_writer_is_killed(tmp_path: Path, before: str | None) -> None:
    final = tmp_path / "step"
    seen = set()
    if before:
        make(final, before)
    for done in killed_at_every_line(lambda: make(final, "new")):
        found = check_folder(final)["word"] if final.exists() else None
        seen.add(found)
        assert not done or found == "new"
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["step"][: final.exists()]
        if final.exists():
            remove_folder(final)
        if before:
            make(final, before)
    assert seen == {before, None, "new"}


def test_a_folder_that_is_removed_is_whole_or_absent_at_any_moment(tmp_path: Path) -> None:
    final = tmp_path / "step"
    make(final, "old")
    for _ in killed_at_every_line(lambda: remove_folder(final)):
        if final.exists():
            check_folder(final)
        else:
            make(final, "old")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["step"]


def test_an_error_while_a_folder_is_filled_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "step"
    make(final, "old")
    with pytest.raises(FileExistsError), new_folder(final) as folder:
        fill(folder, (folder / "inner").mkdir() or "new")
    assert check_folder(final)["word"] == "old"
    assert names(tmp_path) == ["step"]


def test_an_old_folder_that_cannot_be_removed_does_not_lose_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "step"
    make(final, "old")
    removed = files.shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if ".trash-" not in Path(path).name:
            removed(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(files.shutil, "rmtree", busy)
    make(final, "new")
    assert check_folder(final)["word"] == "new"


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert tmp_path.stat().st_ino in synced  # and the name itself, after it
    assert tmp_path.stat().st_ino not in before


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
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


# --- damaged ---


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    make(tmp_path / "step", "word")
    return tmp_path / "step"


def test_a_whole_folder_gives_its_manifest(sealed: Path) -> None:
    found = check_folder(sealed)
    assert found["word"] == "word"
    assert found["files"]["a.txt"] == {"bytes": 400, "sha256": digest_file(sealed / "a.txt")}
    assert list(found["files"]) == ["a.txt", "inner/b.jsonl"]


@pytest.mark.parametrize("name", ["a.txt", "inner/b.jsonl"])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_flipped_bit_is_found(sealed: Path, name: str, place: int) -> None:
    content = bytearray((sealed / name).read_bytes())
    content[place] ^= 1
    (sealed / name).write_bytes(content)
    with pytest.raises(DamagedFile, match="altered") as caught:
        check_folder(sealed)
    assert str(sealed / name) == caught.value.where
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("change", "told", "where"),
    [
        (lambda f: (f / "a.txt").unlink(), "missing", "a.txt"),
        (lambda f: (f / "a.txt").write_bytes((f / "a.txt").read_bytes()[:-1]), "altered", "a.txt"),
        (lambda f: (f / "a.txt").write_bytes(b""), "altered", "a.txt"),
        (lambda f: (f / "a.txt").write_bytes((f / "a.txt").read_bytes() + b"\n"), "altered", "a.txt"),
        (lambda f: (f / "inner" / "c").touch(), "not in the manifest", "inner/c"),
        (lambda f: (f / ".hidden").touch(), "not in the manifest", ".hidden"),
        (lambda f: (f / "inner" / MANIFEST).touch(), "not in the manifest", f"inner/{MANIFEST}"),
        (lambda f: (f / "a.txt").rename(f / "b.txt"), "missing", "a.txt"),
        (lambda f: (f / MANIFEST).unlink(), "has no", ""),
        (lambda f: (f / MANIFEST).write_text(""), "JSON", MANIFEST),
        (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-9]), "JSON", MANIFEST),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff{}"), "JSON", MANIFEST),
        (lambda f: (f / MANIFEST).write_text("{}"), "lists no files", MANIFEST),
        (lambda f: (f / MANIFEST).write_text("[1]"), "lists no files", MANIFEST),
        (lambda f: (f / MANIFEST).write_text('{"files": ["a.txt"]}'), "lists no files", MANIFEST),
    ],
)
def test_what_is_not_as_it_was_written_is_found(
    sealed: Path, change: Callable[[Path], object], told: str, where: str
) -> None:
    change(sealed)
    with pytest.raises(DamagedFile, match=told) as caught:
        check_folder(sealed)
    assert caught.value.where == str(sealed / where)


# --- full ---


WRITERS: list[Callable[[Path], object]] = [
    lambda path: write_text(path, "x" * 5000),
    lambda path: write_json(path, ["x"] * 1000),
    lambda path: make(path, "x" * 50),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "rename", "replace", "mkdir"])
def test_a_full_disk_is_told_at_whatever_step_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, write: Callable[[Path], object], step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    if step == "rename" and write is not WRITERS[2]:
        write(tmp_path / "out")  # a file is not put in place by this call
        return
    with pytest.raises(DoesNotFit, match=r"\d GiB free") as caught:
        write(tmp_path / "out")
    assert caught.value.exit_code == 5
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(tmp_path))
    monkeypatch.undo()
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [*WRITERS, lambda path: write_jsonl(path, ["x" * 100] * 50)])
@pytest.mark.parametrize("before", [False, True])
def test_nothing_half_written_has_a_name_when_space_runs_out(
    tmp_path: Path, write: Callable[[Path], object], before: bool
) -> None:
    final = tmp_path / "out"
    if before:
        make(final, "old") if write is WRITERS[2] else write_text(final, "old")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(DoesNotFit):
            write(final)

    assert in_child(work) == 0
    if write in WRITERS:  # `write_jsonl` writes inside folders that are not sealed yet
        assert names(tmp_path) == ["out"][:before]
        if before:
            assert final.read_text() == "old" if final.is_file() else check_folder(final)["word"] == "old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no full device")
def test_a_full_device_is_told(tmp_path: Path) -> None:
    # By a link: whoever replaced the file instead of writing to it would replace the device itself.
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(DoesNotFit, match="disk is full"):
        write_jsonl(tmp_path / "full", ["x"])


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
def test_libraries_that_run_out_of_space_are_understood(tmp_path: Path, library: str) -> None:
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
        with pytest.raises(DoesNotFit, match="too large"), new_folder(tmp_path / "out") as folder:
            save(folder / "x")

    assert in_child(work) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "no"), ValueError("(os error 5)"), ValueError("28"),
     KeyboardInterrupt()],
)  # fmt: skip
def test_other_errors_are_left_as_they_are(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_enospc(tmp_path / "out"):
        raise error
    assert caught.value is error


# --- one writer ---

HOLD = (
    "import sys; from pathlib import Path; from tunesmith.core.locks import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "logs" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_writer_is_refused_until_the_first_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    lock = tmp_path / "logs" / "lock"
    for _ in range(2):
        with pytest.raises(TunesmithError, match=f"pid {holder.pid} on") as caught, exclusive_lock(lock):
            pass
        assert caught.value.exit_code == 75, "nothing is wrong: a job that comes too early waits for another turn"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive_lock(lock):
        assert lock.read_text().startswith(f"pid {os.getpid()} on ")
        assert lock_holder(lock) == lock.read_text()
    assert lock_holder(lock) is None
    assert lock_holder(tmp_path / "absent") is None


def test_whoever_waits_gets_the_lock_when_the_holder_is_gone(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    got = threading.Event()

    def work() -> None:
        with exclusive_lock(tmp_path / "logs" / "lock", wait=True):
            got.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert not got.wait(0.2)
    holder.kill()
    assert got.wait(20)
    thread.join()


@pytest.mark.slow
def test_the_lock_ends_with_the_work_even_if_that_fails(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), exclusive_lock(lock):
            _ = 1 / (in_child(lambda: exclusive_lock(lock).__enter__()) - 1)


def test_a_lock_on_a_full_disk_says_so(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with pytest.raises(DoesNotFit), exclusive_lock(tmp_path / "lock"):
            pass

    assert in_child(work) == 0


# --- values ---


@given(values=st.lists(json_values, max_size=4), cut=st.integers(0, 10_000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_log_cut_anywhere_gives_its_whole_lines_and_can_go_on(tmp_path: Path, values: list[Any], cut: int) -> None:
    path = tmp_path / "log.jsonl"
    whole = "".join(map(json_line, values)).encode()
    path.write_bytes(whole[:cut])
    kept = read_whole_lines(path)
    assert kept == values[: whole[:cut].count(b"\n")]
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line("next"))
    assert read_whole_lines(path) == [*kept, "next"]
    assert list(read_jsonl(path)) == [*kept, "next"]


def test_no_log_is_no_lines(tmp_path: Path) -> None:
    assert read_whole_lines(tmp_path / "log.jsonl") == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("bad", [b"\0\0\0", b'{"a": ', b"\xff", b""])
@pytest.mark.parametrize("read", [read_whole_lines, lambda path: list(read_jsonl(path))])
def test_a_damaged_line_is_told_with_its_number(tmp_path: Path, read: Callable[[Path], object], bad: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'"first"\n' + bad + b'\n"last"\n')
    with pytest.raises(DamagedFile) as caught:
        read(path)
    assert caught.value.where == f"{path}:2"


@given(json_values)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_json_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    write_jsonl(tmp_path / "x.jsonl", [value, value])
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [value, value]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"x": -float("inf")}]])
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", "old")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", value)
    with pytest.raises(ValueError, match="JSON"):
        digest_of(value)
    assert read_json(tmp_path / "x.json") == "old"
    assert names(tmp_path) == ["x.json"]


@given(json_values, st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_keys(value: Any, random: Any) -> None:
    assert digest_of(_shuffled(value, random)) == digest_of(value)


def _shuffled(value: Any, random: Any) -> Any:
    if isinstance(value, list):
        return [_shuffled(one, random) for one in value]
    if not isinstance(value, dict):
        return value
    items = [(key, _shuffled(one, random)) for key, one in value.items()]
    random.shuffle(items)
    return dict(items)


def test_a_digest_tells_values_apart() -> None:
    values = [None, 0, 0.5, "", "0", [], {}, [[]], [0], ["a", "b"], ["b", "a"], ["ab"], {"a": "b"}, {"b": "a"}, False]
    values += [LINE_ENDS, "\ud800", "\udfff", "\u00e9", "e\u0301"]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of(("a", 1)) == digest_of(["a", 1])  # as they are after JSON
    assert digest_of({"b": 1, "a": json.loads("2")}) == (
        "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    )


def test_a_text_never_takes_the_place_of_a_folder_or_a_device(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder):
        with pytest.raises(RecipeError) as caught:
            write_text(place, "text")
        assert (caught.value.code, caught.value.where) == ("wrong-path", str(place))
    assert sorted(tmp_path.iterdir()) == [folder, pipe]
    assert pipe.is_fifo()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_sealed_files_are_as_readable_as_the_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "made") as folder:
            (folder / "deep").mkdir()
            for name in ("weights.safetensors", "deep/more.safetensors"):
                (folder / name).write_text("x")
                (folder / name).chmod(0o600)  # as safetensors leaves them
            (folder / "sealed").write_text("x")
            (folder / "sealed").chmod(0o444)  # as the registry's objects are
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert modes.pop("sealed") == 0o444
    assert set(modes.values()) == {0o666 & ~umask}
