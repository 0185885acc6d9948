"""A program that runs a command, and ends it and all its children when standard input closes.

Standard input closes when the program that started this one exits, even if it was killed. A server that starts
further processes, as vLLM does, would otherwise keep its memory and its port.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

_SECONDS_TO_EXIT = 5.0


def _end_group(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, number)


def _end_at_eof(process: int, exited: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    _end_group(process, signal.SIGTERM)
    if not exited.wait(_SECONDS_TO_EXIT):
        _end_group(process, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run a command in a new session, and return its exit code, as a shell gives it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    exited = threading.Event()
    threading.Thread(target=_end_at_eof, args=(process.pid, exited), daemon=True).start()
    # Not reaped yet, so that no other process can have its number when its children are killed.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    exited.set()
    _end_group(process.pid, signal.SIGKILL)
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
