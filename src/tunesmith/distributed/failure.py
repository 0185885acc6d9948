"""Processes that end do so for one reason, that of the first of them, and with its exit code.

Where they wait for each other by gloo, a connection that ends tells them to look for the reason. NCCL waits on, and so
does a pass that nobody else is needed for: a thread looks beside them.
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

# How long a process looks for why another is gone, and waits at the end of a run for the others.
BRIEFLY = timedelta(seconds=5)
# How often the thread looks, and for how many seconds it then lets this process come to it by itself.
_PAUSE, _GRACE = 5.0, 30.0
# Held while something is written that this process had better not end in the middle of.
_keeping = threading.Lock()
_last_words: list[Callable[[], None]] = []


@contextlib.contextmanager
def delay_peer_exit() -> Iterator[None]:
    """Write something within: this process is not ended for another's reason before it is whole."""
    with _keeping:
        yield


@contextlib.contextmanager
def run_before_peer_exit(work: Callable[[], None]) -> Iterator[None]:
    """Within, let this be done where the process is ended for a reason that another gave; nothing else is then."""
    _last_words.append(work)
    try:
        yield
    finally:
        _last_words.remove(work)


class FailureChannel:
    """Where processes that end say why, in a store that all of them reach."""

    def __init__(self, place: RankInfo, store: Any, patience: timedelta) -> None:
        self._place, self._patience = place, patience
        self._store: Any = PrefixStore("end", store)
        self._why: TunesmithError | None = None
        self._heard = threading.Event()  # or over

    def tell(self, error: Exception) -> None:
        """Leave for the others why this process ends, unless another has before."""
        code, text = (error.exit_code, str(error)) if isinstance(error, TunesmithError) else (1, repr(error))
        with contextlib.suppress(RuntimeError):  # who holds what is told may be gone
            self._store.compare_set("why", "", json.dumps([code, f"rank {self._place.rank}: {text}"]))

    def told(self) -> TunesmithError | None:
        """Return why another process has left, which this one has noticed. None, if it was killed."""
        if threading.current_thread() is threading.main_thread():
            self._heard.set()  # from here on it may take its time, as to save
        with contextlib.suppress(RuntimeError):
            self._why = self._why or _read(self._store)
        return self._why

    def wait_for_all(self, patience: timedelta) -> None:
        """Stay until all have come here too: what was told may be kept by this very process, and they look late."""
        with contextlib.suppress(RuntimeError):
            _leave(self._store, self._place, patience)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """End this process where another has said why it ends, or kept what is said and is gone, and nobody hears it.

        As a kill would, with the exit code of the other: whatever was saved is whole.
        """
        # A store serves one thread at a time, and the other one may wait for long.
        threading.Thread(target=self._listen, args=(self._store.clone(),), daemon=True).start()
        try:
            yield
        finally:
            self._heard.set()

    def _listen(self, store: Any) -> None:
        lost = ProcessLost("the first process of this run is gone", where=f"rank {self._place.rank}")
        why: TunesmithError | None = None
        while why is None:
            if self._heard.wait(_PAUSE):
                return
            try:
                if store.check(["why"]):
                    why = self._why = _read(store)
            except RuntimeError:
                why = lost
        if self._heard.wait(_GRACE):
            return
        held = _keeping.acquire(timeout=self._patience.total_seconds())
        try:
            if self._heard.wait(BRIEFLY.total_seconds()):  # what was kept may have been its last work
                return
            if why is not lost:
                for work in _last_words:
                    work()
                with contextlib.suppress(RuntimeError):
                    _leave(store, self._place, 3 * BRIEFLY)  # who keeps what is told leaves last
            print(f"error: {why}", file=sys.stderr, flush=True)
            os._exit(why.exit_code)
        finally:
            if held:
                _keeping.release()


def _leave(store: Any, place: RankInfo, patience: timedelta) -> None:
    """Count this process among those that are gone, and wait for the others."""
    if store.add("gone", 1) == place.world_size:
        store.set("all-gone", "")
    store.wait(["all-gone"], patience)


def _read(store: Any) -> TunesmithError:
    """Return why a process has left, which it may be about to say; raise RuntimeError, if none does."""
    store.wait(["why"], BRIEFLY)
    code, text = json.loads(store.get("why"))
    found = TunesmithError(text)
    found.exit_code = code
    return found
