"""When one rank fails, all ranks exit with its error and exit code.

Each failing rank writes its error to a key-value store that all ranks can reach. A rank that waits in gloo notices a
closed connection and reads the error. A rank that waits in NCCL, or computes without communicating, notices nothing, so
each rank also runs a watchdog thread that polls the store.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import ProcessLost, TunesmithError

# The timeout for reading a peer's error, and for waiting for the other ranks at the end of a run.
SHORT_TIMEOUT = timedelta(seconds=5)
# The watchdog polls at this interval. After a peer's error it gives the main thread the grace period to react.
POLL_SECONDS, GRACE_SECONDS = 5.0, 30.0
_exit_callbacks: list[Callable[[], None]] = []
writing_lock = threading.Lock()
"""Hold it while writing files: another rank's failure ends this process only after they are complete."""


@contextlib.contextmanager
def run_before_peer_exit(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` if the watchdog ends this process inside the block. It runs no other cleanup."""
    _exit_callbacks.append(callback)
    try:
        yield
    finally:
        _exit_callbacks.remove(callback)


class FailureChannel:
    """Passes the error of the first rank that fails to all other ranks, through a store that all of them reach.

    Attributes:
        timeout: how long a collective of the group may take.
    """

    def __init__(self, rank_info: RankInfo, store: Any, timeout: timedelta) -> None:
        self._rank_info, self.timeout = rank_info, timeout
        self._store: Any = PrefixStore("end", store)
        self._error: TunesmithError | None = None
        self._stop_watchdog = threading.Event()  # set when the main thread handles the failure, or the run is over

    def send(self, error: Exception) -> None:
        """Store the error with which this rank ends, unless another rank has stored one."""
        code, text = (error.exit_code, str(error)) if isinstance(error, TunesmithError) else (1, repr(error))
        with contextlib.suppress(RuntimeError):  # the rank that holds the store may be gone
            self._store.compare_set("why", "", json.dumps([code, f"rank {self._rank_info.rank}: {text}"]))

    def receive(self) -> TunesmithError | None:
        """Return the error of a rank that is gone, or None if it stored none because it was killed."""
        if threading.current_thread() is threading.main_thread():
            self._stop_watchdog.set()  # the main thread reacts, and may need time to save a checkpoint
        with contextlib.suppress(RuntimeError):
            self._error = self._error or _read_error(self._store)
        return self._error

    def wait_for_all(self, timeout: timedelta, store: Any = None) -> None:
        """Wait until all ranks call this. This process may hold the store, and the others read it up to 5 s later.

        Args:
            store: the connection to the store; default that of the main thread.
        """
        store = self._store if store is None else store
        with contextlib.suppress(RuntimeError):
            if store.add("gone", 1) == self._rank_info.world_size:
                store.set("all-gone", "")
            store.wait(["all-gone"], timeout)

    @contextlib.contextmanager
    def failure_watchdog(self) -> Iterator[None]:
        """End this process if another rank fails inside the block and the main thread does not react in time.

        The same happens if rank 0, which holds the store, is gone. The process ends at once, as if killed, with the
        exit code of the failed rank. Files written under `writing_lock` are completed first.
        """
        # A store connection serves one thread at a time, and the main thread may wait in it for long.
        threading.Thread(target=self._watch, args=(self._store.clone(),), daemon=True).start()
        try:
            yield
        finally:
            self._stop_watchdog.set()

    def _watch(self, store: Any) -> None:
        rank0_lost = ProcessLost("rank 0 of this run is gone", where=f"rank {self._rank_info.rank}")
        error: TunesmithError | None = None
        while error is None:
            if self._stop_watchdog.wait(POLL_SECONDS):
                return
            try:
                if store.check(["why"]):
                    error = self._error = _read_error(store)
            except RuntimeError:
                error = rank0_lost
        if self._stop_watchdog.wait(GRACE_SECONDS):
            return
        acquired = writing_lock.acquire(timeout=self.timeout.total_seconds())
        try:
            if self._stop_watchdog.wait(SHORT_TIMEOUT.total_seconds()):  # the write may have been the last work
                return
            if error is not rank0_lost:
                for callback in _exit_callbacks:
                    callback()
                self.wait_for_all(3 * SHORT_TIMEOUT, store)  # the rank that holds the store leaves last
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        finally:
            if acquired:
                writing_lock.release()


def _read_error(store: Any) -> TunesmithError:
    """Return the stored error, waiting briefly for it; raise RuntimeError if there is none."""
    store.wait(["why"], SHORT_TIMEOUT)
    code, text = json.loads(store.get("why"))
    error = TunesmithError(text)
    error.exit_code = code
    return error
