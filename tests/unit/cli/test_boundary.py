"""Every exception ends as a message and an exit code, never as a traceback."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cyclopts import App

from tunesmith.cli.boundary import run_command
from tunesmith.cli.output import Reported, print_json
from tunesmith.core.error_codes import ERROR_CODES
from tunesmith.core.errors import (
    DoesNotFit,
    Interrupted,
    ProcessLost,
    RecipeError,
    TunesmithError,
    VerdictRefused,
)
from tunesmith.tasks.base import RowProblem

Raises = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raises(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Raises:
    """Return a function that runs a verb that raises an error; it returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNESMITH_DEBUG", raising=False)

    def run(error: BaseException, arguments: Sequence[str] = ("verb",)) -> tuple[int, str, str]:
        app = App(suppress_keyboard_interrupt=False)

        @app.command
        def verb(*, json: bool = False) -> None:
            raise error

        code = run_command(app, arguments)
        return code, *capsys.readouterr()

    return run


SECOND_TURN = RowProblem("the chat template rewrites the conversation")


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (RecipeError("no"), 2, "recipe"),
        (RecipeError("no", code="no-home"), 2, "no-home"),
        (Interrupted("stopped"), 75, "interrupted"),
        (ProcessLost("gone"), 75, "process-lost"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 5, "does-not-fit"),
        (OSError(errno.ENOSPC, "No space left on device", "x.html"), 5, "does-not-fit"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x.html"), 5, "does-not-fit"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "does-not-fit"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "permission"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "permission"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 2, "wrong-path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "wrong-path"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "wrong-path"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, "wrong-path"),
        (ValueError("embedded null byte"), 2, "wrong-path"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "not-found"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "error"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "error"),
        (RuntimeError("safetensors: I/O error: Permission denied (os error 13)"), 2, "permission"),
        (ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes.optim"), 2, "missing-package"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 3, "encoding"),
        (IndexError("list index out of range"), 1, "unexpected"),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected"),
        (ImportError("cannot import name 'x'"), 1, "unexpected"),
        (RuntimeError("expected Float but found Half"), 1, "unexpected"),
        (SECOND_TURN, 1, "unexpected"),
    ],
)  # fmt: skip
def test_an_exception_is_reported_on_stderr_and_as_json(
    error: BaseException, exit_code: int, code: str, raises: Raises
) -> None:
    found, out, err = raises(error)
    assert (found, out) == (exit_code, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    found, out, err = raises(error, ["verb", "--json"])
    told = json.loads(out)
    assert found == exit_code
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"code", "message", "where", "hint"}
    assert told["error"]["code"] == code
    assert code in ERROR_CODES


def test_an_unexpected_error_leaves_its_traceback_in_a_file(raises: Raises, tmp_path: Path) -> None:
    _, _, err = raises(IndexError("list index out of range"))
    [log] = (tmp_path / "cache" / "errors").glob("*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()
    assert "IndexError: list index out of range" in log.read_text()


def test_a_cache_that_cannot_be_written_is_no_second_error(
    raises: Raises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    code, _, err = raises(IndexError("list index out of range"))
    assert code == 1
    assert str(tmp_path / "tmp") in err


@pytest.mark.parametrize("way", ["--debug", "TUNESMITH_DEBUG"])
def test_debug_shows_the_traceback(way: str, raises: Raises, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "TUNESMITH_DEBUG":
        monkeypatch.setenv(way, "1")
    _, _, err = raises(RecipeError("no"), ["verb"] if way == "TUNESMITH_DEBUG" else [way, "verb"])
    assert "Traceback" in err


def test_wrong_usage_is_reported_as_json_too(raises: Raises) -> None:
    code, out, _ = raises(RecipeError("never raised"), ["verb", "--json", "--frob"])
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


def test_a_result_that_is_printed_already_stays_the_only_json(raises: Raises) -> None:
    code, out, err = raises(Reported(DoesNotFit("too large")), ["verb", "--json"])
    assert (code, out) == (5, "")
    assert "too large" in err


def test_only_the_first_rank_prints_json(raises: Raises, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert raises(RecipeError("no"), ["verb", "--json"])[:2] == (2, "")


def test_every_class_has_a_documented_code() -> None:
    classes = [TunesmithError, *TunesmithError.__subclasses__(), ProcessLost]
    assert {one.code for one in classes} <= ERROR_CODES.keys()


def test_json_keeps_characters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json({"answer": "Zürich \u2212 \ud800"})
    stdout.seek(0)
    assert json.loads(stdout.read()) == {"answer": "Zürich \u2212 \ud800"}


def tunesmith(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *arguments], env={**os.environ, **environment}, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_survives_the_encoding_of_a_terminal(encoding: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r\u00fc\u2192.yaml"
    recipe.write_text("nam\u2212e\u00fc: \u96ea\n", encoding="utf-8")
    done = tunesmith("plan", str(recipe), "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["message"].count("nam\u2212e\u00fc") == 1
    assert ("nam\u2212e\u00fc" if encoding == "utf-8" else "nam-e").encode(encoding) in done.stderr


@pytest.fixture
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes buffer stdout, as they do for users, so that writing to it fails when it is flushed."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


# Help is written and flushed by cyclopts, results by us.
PRINTS = pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"]], ids=["help", "result"])


@PRINTS
@pytest.mark.usefixtures("_buffered")
def test_a_closed_pipe_ends_without_a_message(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@PRINTS
@pytest.mark.usefixtures("_buffered")
def test_a_full_disk_behind_stdout_does_not_exit_0(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_verdict_against_promotion_is_a_result_and_no_error(raises: Raises) -> None:
    code, _, err = raises(Reported(VerdictRefused("it is not better")))
    assert (code, err) == (4, "")
