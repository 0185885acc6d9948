"""The cluster of the tests is a real Slurm, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.contract.sources import ROOT
from tests.support.slurm_cluster import Cluster, cluster, missing, until

pytestmark = pytest.mark.slow
NAMESPACES = ("net", "mnt", "pid", "uts")


@pytest.fixture(scope="module", autouse=True)
def _skip_without_cluster() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster", SlurmdTimeout=5) as running:
        yield running


def submit(slurm: Cluster, folder: Path, script: str, *options: str) -> str:
    """Submit a shell script that writes to a file `out`; return the job's id."""
    (folder / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
    command = ["sbatch", "--parsable", "--output=out", "--open-mode=append", *options, "job.sh"]
    done = slurm.run(command, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_step_runs_on_every_node_with_its_gpus(slurm: Cluster) -> None:
    command = ["srun", "--nodes=2", "--gpus-per-node=2", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"]
    done = slurm.run(command, timeout=60)
    assert sorted(done.stdout.splitlines()) == ["node1 0,1", "node2 0,1"], done.stderr


def test_job_has_the_exit_code_of_its_script(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "exit 7")
    slurm.wait(job, {"FAILED"}, timeout=60)
    assert slurm.job(job)["ExitCode"] == "7:0"
    with pytest.raises(TimeoutError) as error:
        slurm.wait(job, {"COMPLETED"}, timeout=0)
    assert "FAILED" in str(error.value)


def test_job_can_requeue_itself(slurm: Cluster, tmp_path: Path) -> None:
    script = '[ "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }; echo $SLURM_RESTART_COUNT'
    job = submit(slurm, tmp_path, script)
    slurm.wait(job, {"COMPLETED"}, timeout=120)
    assert (tmp_path / "out").read_text().splitlines()[-1] == "1"


def test_job_that_loses_a_node_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    # If not all tasks of a step start, the job fails and is not requeued; so wait until both have started.
    script = """
[ "$SLURM_RESTART_COUNT" ] && exec srun hostname
srun sh -c 'sleep 1; touch on-$(hostname); sleep 300'
"""
    job = submit(slurm, tmp_path, script, "--nodes=2")
    assert until(lambda: all((tmp_path / f"on-node{node}").exists() for node in slurm.nodes), 60)
    slurm.cut(2)
    try:
        slurm.wait(job, {"PENDING"}, timeout=120)
    finally:
        slurm.join(2)
    slurm.wait(job, {"COMPLETED"}, timeout=120)
    assert slurm.job(job)["Restarts"] == "1"
    assert sorted((tmp_path / "out").read_text().splitlines()[-2:]) == ["node1", "node2"]
    slurm.wait_idle(60)


def test_command_gets_signals_and_returns_its_exit_code(slurm: Cluster, tmp_path: Path) -> None:
    script = "trap 'exit 75' USR1; echo ready; sleep 60 & wait"
    process = slurm.popen(["sh", "-c", script], env={"A": "b"}, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    with pytest.raises(subprocess.TimeoutExpired):
        slurm.run(["sleep", "60"], timeout=0.5)
    assert slurm.run(["sh", "-c", "pwd; hostname; echo $A"], env={"A": "b"}, cwd=tmp_path, timeout=60).stdout == (
        f"{tmp_path}\nhead\nb\n"
    )


def namespaces_of(*pids: int) -> set[str]:
    """Return the namespaces of processes, such as `net:[4026532]`."""
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in NAMESPACES}


def leftovers(namespaces: set[str]) -> list[str]:
    """Return the processes that are still in these namespaces, and the mounts that keep them."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in mounts if any(namespace in line for namespace in namespaces)]
    for link in (link for kind in NAMESPACES for link in Path("/proc").glob(f"[0-9]*/ns/{kind}")):
        with suppress(OSError):  # the process has ended in the meantime
            if os.readlink(link) in namespaces:
                found.append(str(link))
    return found


def test_cluster_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("slurm")  # the name of the test would be too long for sockets
    with cluster(tmp_path / "cluster", nodes=1) as slurm:
        submit(slurm, tmp_path, "setsid sleep 600 & touch started; sleep 600")
        assert until((tmp_path / "started").exists, 60)
        client = slurm.popen(["sleep", "600"])
        namespaces = namespaces_of(slurm.head.pid, slurm.nodes[1].pid)
        assert leftovers(namespaces)
        assert client.poll() is None
    assert not leftovers(namespaces)
    assert client.poll() is not None
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_cluster_of_killed_tests_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("slurm")
    code = """
import pathlib, sys, time
from tests.support.slurm_cluster import cluster

with cluster(pathlib.Path(sys.argv[1]), nodes=1) as slurm:
    slurm.popen(["sleep", "600"])
    print(slurm.head.pid, slurm.nodes[1].pid, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "cluster")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        namespaces = namespaces_of(*map(int, process.stdout.readline().split()))
        assert leftovers(namespaces)
        process.kill()
    assert until(lambda: not leftovers(namespaces), 60)
