"""Processes that end do so for one reason: the one that one of them met, with its exit code."""

import os
import subprocess
import sys
import time

import pytest
from tests.contract.sources import ROOT

pytestmark = pytest.mark.slow
PROGRAM = """
import os, sys, time
from tunesmith.core.errors import NonFinite, TunesmithError
from tunesmith.core.dist_env import place
from tunesmith.distributed import failure
from tunesmith.distributed.process_group import meeting

rank, ends, how = place().rank, int(sys.argv[1]), sys.argv[2]
if how in ("deaf", "deaf, killed", "saves", "writes"):
    failure._PAUSE, failure._GRACE = 0.5, 1.0
try:
    with meeting(place(), 1.0) as others:
        others.group.wait()
        if rank == ends and how in ("killed", "deaf, killed"):
            os._exit(9)
        if rank == ends:
            raise ValueError("a bug") if how == "bug" else NonFinite("is not finite", where="step 3")
        if how == "known":
            time.sleep(8)  # the pass that it is in
        if how.startswith("deaf"):
            with failure.last_words(lambda: print("last words", flush=True)):
                time.sleep(600)  # as who waits in NCCL
        if how == "writes":
            with failure.keeping():
                time.sleep(9)
                print("is whole", flush=True)
            time.sleep(600)
        try:
            others.group.sum(1.0)
        finally:
            if how == "saves":
                time.sleep(9)
                print("is saved", flush=True)
except TunesmithError as error:
    print(error)
    sys.exit(error.exit_code)
"""


HOW = ("known", "bug", "killed", "deaf", "deaf, killed", "saves", "writes")


def ended(ends: int, how: str) -> list[tuple[int, str]]:
    """Let one of two processes end while the other waits for it; return the exit code and the words of each."""
    port = 20_000 + os.getpid() % 10_000
    step = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + 2 * HOW.index(how) + ends),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ends), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    said = [one.communicate(timeout=120)[0] for one in processes]
    return [(one.returncode, text) for one, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize("ends", [0, 1])
def test_all_end_with_the_error_of_one(ends: int) -> None:
    found = ended(ends, "known")
    assert [code for code, _ in found] == [7, 7]
    assert "step 3: is not finite" in found[ends][1]
    assert f"rank {ends}: step 3: is not finite" in found[1 - ends][1]


def test_a_bug_in_one_is_no_reason_to_go_on() -> None:
    [(first, text), (second, _)] = ended(1, "bug")
    assert (first, second) == (1, 1)
    assert "rank 1: ValueError('a bug')" in text


@pytest.mark.parametrize("ends", [0, 1])
def test_who_does_not_hear_the_error_of_another_ends_too(ends: int) -> None:
    found = ended(ends, "deaf")
    assert [code for code, _ in found] == [7, 7]
    assert f"error: rank {ends}: step 3: is not finite" in found[1 - ends][1]
    assert "last words" in found[1 - ends][1]


@pytest.mark.parametrize(("how", "said"), [("saves", "is saved"), ("writes", "is whole")])
def test_who_has_noticed_or_writes_is_left_the_time_for_it(how: str, said: str) -> None:
    found = ended(1, how)
    assert [code for code, _ in found] == [7, 7]
    assert said in found[0][1]
    assert ("error: rank 1" in found[0][1]) == (how == "writes"), "who has noticed ends by itself"


def test_who_does_not_hear_that_the_first_is_killed_ends_resumably() -> None:
    [(first, _), (second, text)] = ended(0, "deaf, killed")
    assert (first, second) == (9, 75)
    assert "error: rank 1: the first process of this run is gone" in text
    assert "last words" not in text, "as one that was killed leaves none"


@pytest.mark.parametrize("ends", [0, 1])
def test_where_one_is_killed_the_others_end_resumably(ends: int) -> None:
    began = time.monotonic()
    found = ended(ends, "killed")
    assert (found[ends][0], found[1 - ends][0]) == (9, 75)
    assert f"rank {1 - ends} of 2: another process of this run is gone" in found[1 - ends][1]
    assert time.monotonic() - began < 60, "and not only when the minute of patience is over"
