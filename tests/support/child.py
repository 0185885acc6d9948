"""Run code in a forked child process, for limits and kills that end a process."""

import os
from collections.abc import Callable


def run_in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; return its exit code, 1 if it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
