"""Start a server as a process that ends when we do, wait until it is ready, and explain its failures by its log."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tunesmith.core import interrupt
from tunesmith.core.errors import TunesmithError

T = TypeVar("T")
_GUARD = Path(__file__).with_name("process_guard.py")
_LOG_LINES, _LOG_BYTES = 8, 8192
_POLL_SECONDS = 0.1
_SECONDS_TO_EXIT = 10.0  # the guard kills the server after half of it


class ServerProcess:
    """A server, with its log in a file that is deleted at the end unless the server failed.

    Attributes:
        log: the file.

    Args:
        name: the program, for errors.
        command: the program and its arguments.
        environment: the variables of the environment that are added or replaced; None removes one.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str | None] | None = None
    ) -> None:
        self._name, self._failed = name, False
        descriptor, path = tempfile.mkstemp(prefix="tunesmith-engine-", suffix=".log")
        self.log = Path(path)
        merged = {**os.environ, **(environment or {})}
        variables = {key: value for key, value in merged.items() if value is not None}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), *command], stdin=subprocess.PIPE, stdout=descriptor,
                stderr=subprocess.STDOUT, env=variables, start_new_session=True,
            )  # fmt: skip
        except OSError:
            self.log.unlink()
            raise
        finally:
            os.close(descriptor)

    def log_end(self) -> str:
        """Return the end of what the server has written; "" after `close`."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")

    def check(self) -> None:
        """Raise TunesmithError with the end of the log if the server has exited."""
        interrupt.check()
        if (code := self._process.poll()) is not None:
            lines = [line for line in self.log_end().splitlines() if line.strip()]
            message = f"exited with code {code}: " + "\n    ".join(lines[-_LOG_LINES:] or ["it wrote nothing"])
            raise self._error(message)

    def wait_until(self, ready: Callable[[], T | None], seconds: float) -> T:
        """Return the first value of `ready` that is not None; after any error or interruption, the server is ended.

        Raises:
            TunesmithError: the server exits before, or is not ready in time.
        """
        deadline = time.monotonic() + seconds
        try:
            while (value := ready()) is None:
                self.check()
                if time.monotonic() > deadline:
                    raise self._error(f"is not ready after {seconds:.0f} seconds")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.close()
            raise
        return value

    def _error(self, message: str) -> TunesmithError:
        self._failed = True
        return TunesmithError(message, where=self._name, hint=f"see {self.log}", code="engine-exited")

    def wait(self) -> int:
        """Wait until the server exits, and return its exit code; an interruption ends it."""
        while self._process.poll() is None:
            interrupt.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_SECONDS)
        return self._process.returncode

    def close(self) -> None:
        """End the server and its children within seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_EXIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._failed:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def free_port() -> int:
    """Return a port of this machine that nothing listens at; another program could still take it before its use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
