"""When one rank fails, all ranks exit with its error and exit code."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.sources import ROOT

pytestmark = pytest.mark.slow
PROGRAM = """
import os, sys, threading, time
from pathlib import Path
from tunesmith.core.errors import NonFinite, TunesmithError
from tunesmith.core.dist_env import rank_info
from tunesmith.distributed import failure
from tunesmith.distributed.process_group import join_process_group

rank, ends, how, ready = rank_info().rank, int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
if how in ("deaf", "deaf, killed", "writes"):
    failure.POLL_SECONDS, failure.GRACE_SECONDS = 0.5, 1.0
if how == "saves":
    failure.POLL_SECONDS = 0.5

def until_the_end():
    ready.touch()
    time.sleep(600)  # as who waits in NCCL

try:
    with join_process_group(rank_info(), 10.0) as coordinator:
        coordinator.group.barrier()
        if rank == ends:
            while not ready.exists():
                time.sleep(0.01)
            if how in ("killed", "deaf, killed"):
                os._exit(9)
            raise ValueError("a bug") if how == "bug" else NonFinite("is not finite", where="step 3")
        if how.startswith("deaf"):
            with failure.run_before_peer_exit(lambda: print("last words", flush=True)):
                until_the_end()
        if how == "writes":
            with failure.writing_lock:
                ready.touch()
                time.sleep(9)
                print("is whole", flush=True)
            until_the_end()
        ready.touch()
        if how == "known":
            time.sleep(6)  # the pass that it is in
        try:
            coordinator.group.sum(1.0)
        finally:
            if how == "saves":  # for as long as the thread takes that would end this process
                for thread in threading.enumerate():
                    if thread is not threading.current_thread():
                        thread.join()
                print("is saved", flush=True)
except TunesmithError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ended(ends: int, how: str, folder: Path) -> list[tuple[int, str]]:
    """Let one of two ranks end while the other is busy; return the exit code and output of each."""
    step = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ends), how, str(folder / "ready")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    said = [one.communicate(timeout=240)[0] for one in processes]  # their timeout is longer
    return [(one.returncode, text) for one, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize("ends", [0, 1])
def test_all_ranks_exit_with_the_error_of_one(ends: int, tmp_path: Path) -> None:
    found = ended(ends, "known", tmp_path)
    assert [code for code, _ in found] == [7, 7]
    assert "step 3: is not finite" in found[ends][1]
    assert f"rank {ends}: step 3: is not finite" in found[1 - ends][1]


def test_a_bug_in_one_rank_ends_all(tmp_path: Path) -> None:
    [(first, text), (second, _)] = ended(1, "bug", tmp_path)
    assert (first, second) == (1, 1)
    assert "rank 1: ValueError('a bug')" in text


@pytest.mark.parametrize("ends", [0, 1])
def test_a_rank_that_never_communicates_again_exits_with_the_error_of_another(ends: int, tmp_path: Path) -> None:
    found = ended(ends, "deaf", tmp_path)
    assert [code for code, _ in found] == [7, 7]
    assert f"error: rank {ends}: step 3: is not finite" in found[1 - ends][1]
    assert "last words" in found[1 - ends][1]


@pytest.mark.parametrize(("how", "said"), [("saves", "is saved"), ("writes", "is whole")])
def test_a_rank_that_noticed_the_error_or_is_writing_gets_time(how: str, said: str, tmp_path: Path) -> None:
    found = ended(1, how, tmp_path)
    assert [code for code, _ in found] == [7, 7]
    assert said in found[0][1]
    assert ("error: rank 1" in found[0][1]) == (how == "writes"), (
        "a rank that noticed the error exits without the watchdog"
    )


def test_a_rank_that_never_communicates_again_exits_with_75_after_rank_0_is_killed(tmp_path: Path) -> None:
    [(first, _), (second, text)] = ended(0, "deaf, killed", tmp_path)
    assert (first, second) == (9, 75)
    assert "error: rank 1: rank 0 " in text
    assert "last words" not in text, "as one that was killed leaves none"


@pytest.mark.parametrize("ends", [0, 1])
def test_other_ranks_exit_with_75_after_one_is_killed(ends: int, tmp_path: Path) -> None:
    found = ended(ends, "killed", tmp_path)
    assert (found[ends][0], found[1 - ends][0]) == (9, 75)
    assert f"rank {1 - ends} of 2: " in found[1 - ends][1]
