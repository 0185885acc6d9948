"""The only place that catches every exception: it prints a message on stderr and returns an exit code."""

import contextlib
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from cyclopts import App

from tunesmith.cli.output import Reported, accept_any_encoding, print_json
from tunesmith.cli.translate import as_tunesmith_error
from tunesmith.core.dist_env import rank_info
from tunesmith.core.errors import TunesmithError, VerdictRefused
from tunesmith.core.user_folders import cache_root

_KEPT_LOGS = 20


def run_command(app: App, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    With `--debug` anywhere before `--`, or TUNESMITH_DEBUG=1, the traceback of a failure is printed too.
    """
    accept_any_encoding()
    arguments, debug = _without_debug(arguments)
    as_json = "--json" in arguments
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # a full disk or a closed pipe fails here, before the exit code is decided
        return 0
    except Reported as reported:
        if isinstance(reported.error, VerdictRefused):  # a result, not an error
            return reported.error.exit_code
        return _failed(reported.error, reported, False, debug)
    except BrokenPipeError:
        _abandon_stdout()  # the reader of the pipe has exited (`| head`)
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _failed(as_tunesmith_error(error) or _unexpected(error, arguments), error, as_json, debug)


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    others = [argument for index, argument in enumerate(arguments) if argument != "--debug" or index > end]
    return others, len(others) < len(arguments) or os.environ.get("TUNESMITH_DEBUG", "0") not in ("", "0")


def _failed(error: TunesmithError, raised: BaseException, as_json: bool, debug: bool) -> int:
    """Print a failure and return its exit code."""
    try:
        if debug:
            traceback.print_exception(raised, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr, flush=True)
        if as_json and _is_rank0():
            print_json({"error": error.to_json()})
        sys.stdout.flush()
    except OSError:
        _abandon_stdout()
    return error.exit_code


def _is_rank0() -> bool:
    """Return whether this process prints results: rank 0 does."""
    with contextlib.suppress(TunesmithError):  # the launcher's variables are wrong; that is the error being printed
        return rank_info().is_rank0
    return True


def _abandon_stdout() -> None:
    """Redirect the interpreter's last flush to /dev/null, because stdout cannot be written."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(devnull, stream.fileno())


def _unexpected(error: BaseException, arguments: Sequence[str]) -> TunesmithError:
    """Write the traceback to a log file and return an error that names it."""
    summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "tunesmith" in Path(frame.filename).parts]
    location = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    log = _write_log(error, arguments)
    hint = f"this is a bug in tunesmith or in a library; the traceback is in {log}" if log else "--debug shows more"
    return TunesmithError(f"unexpected {summary.splitlines()[0][:300]}{location}", code="unexpected", hint=hint)


def _write_log(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write the traceback to a file in the cache or the temporary folder; return its path, None if both fail."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = (
        f"tunesmith {metadata.version('tunesmith')}, Python {platform.python_version()}, {platform.platform()}\n"
        f"arguments: {list(arguments)!r}\n\n{''.join(traceback.format_exception(error))}"
    )
    for folder in _log_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            for old in sorted(folder.glob("*.log"))[:-_KEPT_LOGS]:
                old.unlink(missing_ok=True)
            return folder / name
    return None


def _log_folders() -> Iterator[Path]:
    with contextlib.suppress(TunesmithError):  # a user without a home has no cache
        yield cache_root() / "errors"
    yield Path(tempfile.gettempdir()) / f"tunesmith-errors-{os.getuid()}"
