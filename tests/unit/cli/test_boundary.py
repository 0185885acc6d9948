"""The boundary turns every exception into a message, a code and an exit code, without a traceback."""

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

RunFunction = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_function(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFunction:
    """Return a function that runs a command raising an error, and returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNESMITH_DEBUG", raising=False)

    def run(error: BaseException, arguments: Sequence[str] = ("command",)) -> tuple[int, str, str]:
        app = App(suppress_keyboard_interrupt=False)

        @app.command
        def command(*, json: bool = False) -> None:
            raise error

        code = run_command(app, arguments)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (RecipeError("no"), 2, "recipe"),
        (RecipeError("no", code="no-home"), 2, "no-home"),
        (Interrupted("stopped"), 75, "interrupted"),
        (ProcessLost("gone"), 75, "process-lost"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 5, "out-of-memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x.html"), 5, "disk-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x.html"), 5, "disk-full"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out-of-memory"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "permission"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "permission"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 2, "wrong-path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "wrong-path"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "wrong-path"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, "wrong-path"),
        (ValueError("embedded null byte"), 2, "wrong-path"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "not-found"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "open-files"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "error"),
        (RuntimeError("safetensors: I/O error: Permission denied (os error 13)"), 2, "permission"),
        (ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes.optim"), 2, "missing-package"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 3, "encoding"),
        (IndexError("list index out of range"), 1, "unexpected"),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected"),
        (ImportError("cannot import name 'x'"), 1, "unexpected"),
        (RuntimeError("expected Float but found Half"), 1, "unexpected"),
        (RowProblem("an internal exception"), 1, "unexpected"),
    ],
)  # fmt: skip
def test_an_exception_is_reported_on_stderr_and_as_json(
    error: BaseException, exit_code: int, code: str, run_function: RunFunction
) -> None:
    status, out, err = run_function(error)
    assert (status, out) == (exit_code, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    status, out, err = run_function(error, ["command", "--json"])
    assert status == exit_code
    result = json.loads(out)
    assert result.keys() == {"error"}
    assert result["error"].keys() == {"code", "message", "where", "hint"}
    assert result["error"]["code"] == code
    assert code in ERROR_CODES


def test_an_unexpected_error_writes_its_traceback_to_a_log(run_function: RunFunction, tmp_path: Path) -> None:
    _, _, err = run_function(IndexError("list index out of range"))
    [log] = (tmp_path / "cache" / "errors").glob("*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()
    assert "IndexError: list index out of range" in log.read_text()


def test_the_log_goes_to_the_temporary_folder_if_the_cache_cannot_be_written(
    run_function: RunFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    code, _, err = run_function(IndexError("list index out of range"))
    assert code == 1
    assert str(tmp_path / "tmp") in err


@pytest.mark.parametrize("switch", ["--debug", "TUNESMITH_DEBUG"])
def test_debug_prints_the_traceback(switch: str, run_function: RunFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch == "TUNESMITH_DEBUG":
        monkeypatch.setenv(switch, "1")
    _, _, err = run_function(RecipeError("no"), ["command"] if switch == "TUNESMITH_DEBUG" else [switch, "command"])
    assert "Traceback" in err


def test_json_reports_wrong_usage(run_function: RunFunction) -> None:
    code, out, _ = run_function(RecipeError("never raised"), ["command", "--json", "--frob"])
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


def test_no_second_json_after_a_printed_result(run_function: RunFunction) -> None:
    code, out, err = run_function(Reported(DoesNotFit("too large")), ["command", "--json"])
    assert (code, out) == (5, "")
    assert "too large" in err


def test_only_rank_0_prints_json(run_function: RunFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run_function(RecipeError("no"), ["command", "--json"])[:2] == (2, "")


def test_every_class_has_a_documented_code() -> None:
    classes = [TunesmithError, *TunesmithError.__subclasses__(), ProcessLost]
    assert {kind.code for kind in classes} <= ERROR_CODES.keys()


def test_json_escapes_characters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_output_works_in_any_encoding_of_the_terminal(encoding: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r\u00fc\u2192.yaml"
    recipe.write_text("nam\u2212e\u00fc: \u96ea\n", encoding="utf-8")
    done = tunesmith("plan", str(recipe), "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["message"].count("nam\u2212e\u00fc") == 1
    assert ("nam\u2212e\u00fc" if encoding == "utf-8" else "nam-e").encode(encoding) in done.stderr


@pytest.fixture
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes buffer stdout, as they do for users, so that a write fails only at the flush."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


# cyclopts writes and flushes the help; we do the same for results.
PRINTS = pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"]], ids=["help", "result"])


@PRINTS
@pytest.mark.usefixtures("_buffered")
def test_a_closed_pipe_prints_nothing(arguments: list[str]) -> None:
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
def test_a_full_disk_at_stdout_exits_with_5(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_refused_verdict_is_a_result_without_an_error(run_function: RunFunction) -> None:
    code, _, err = run_function(Reported(VerdictRefused("not better")))
    assert (code, err) == (4, "")
