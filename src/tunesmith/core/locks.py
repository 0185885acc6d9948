"""File locks between processes. The system releases a lock when the process ends, even if it is killed."""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tunesmith.core.errors import Interrupted
from tunesmith.core.files import translate_enospc

# Pauses between attempts, because `lock_holder` takes the lock for a moment too.
_RETRY_SECONDS = (0.1, 0.4, 1.0, 0)


@contextlib.contextmanager
def exclusive_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that no other process can hold at the same time.

    Args:
        wait: wait until another process releases it.

    Raises:
        Interrupted: another process holds it and `wait` is false.
    """
    with contextlib.ExitStack() as stack:
        with translate_enospc(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: on a full disk, closing a buffered file would raise a second error.
            file = stack.enter_context(path.open("ab+", buffering=0))
            if not _acquire(file, wait=wait):
                message, hint = (
                    f"another process ({_holder(file)}) is working here",
                    "wait for it, or pass another --out",
                )
                raise Interrupted(message, where=str(path.parent), code="locked", hint=hint)
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}".encode())
        yield


def lock_holder(path: Path) -> str | None:
    """Return the process that holds a lock, such as `pid 123 on gpu04`; None if no process does."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
    return None


@contextlib.contextmanager
def try_lock(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Yield whether the lock is held inside.

    A shared lock waits until no process holds the lock exclusively. An exclusive one does not wait: it yields False if
    another process holds the lock. Both yield False on a file system without locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        held = False
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held


def _acquire(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file for this process; without `wait`, give up after two seconds."""
    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    for pause in _RETRY_SECONDS:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip() or "unknown"
