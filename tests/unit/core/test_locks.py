"""One process at a time writes to a folder; a killed process releases its lock."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.child import run_in_child
from tests.support.errors import raises

from tunesmith.core.errors import DoesNotFit, Interrupted
from tunesmith.core.locks import exclusive_lock, lock_holder, try_lock

HOLD = (
    "import sys; from pathlib import Path; from tunesmith.core.locks import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "logs" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    lock = tmp_path / "logs" / "lock"
    for _ in range(2):
        # Interrupted exits with 75, so that Slurm requeues a job that starts too early.
        with raises(Interrupted, "locked", f"pid {holder.pid} on", where="logs"), exclusive_lock(lock):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive_lock(lock):
        assert lock.read_text().startswith(f"pid {os.getpid()} on ")
        assert lock_holder(lock) == lock.read_text()
    assert lock_holder(lock) is None
    assert lock_holder(tmp_path / "absent") is None


def test_wait_gets_the_lock_after_the_holder_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    acquired = threading.Event()

    def work() -> None:
        with exclusive_lock(tmp_path / "logs" / "lock", wait=True):
            acquired.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert not acquired.wait(0.2)
    holder.kill()
    assert acquired.wait(20)
    thread.join()


@pytest.mark.slow
def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), exclusive_lock(lock):
            _ = 1 / (run_in_child(lambda: exclusive_lock(lock).__enter__()) - 1)


def test_a_lock_on_a_full_disk_is_reported(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with raises(DoesNotFit, "disk-full"), exclusive_lock(tmp_path / "lock"):
            pass

    assert run_in_child(work) == 0


def test_try_lock_allows_several_readers_or_one_writer(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "lock"
    with try_lock(lock, shared=True) as first, try_lock(lock, shared=True) as second:
        assert (first, second) == (True, True)
        with try_lock(lock) as writer:
            assert not writer
    with try_lock(lock) as writer:
        assert writer
