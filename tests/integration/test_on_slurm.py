"""A recipe on a real Slurm of two nodes: to its verdict, and through every fault with the same weights."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.contract.sources import ROOT
from tests.integration.test_founding_jobs import FEW, RECIPES, source
from tests.integration.test_killed import steps_done
from tests.integration.test_parallel import of_60_steps, same
from tests.support.slurm_cluster import Cluster, cluster, missing, until
from tests.support.tiny import save_plain_model

from tunesmith import run_recipe
from tunesmith.core.files import digest_file, read_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.slurm.jobs import StageJob, exit_code, log_path, read_jobs

pytestmark = pytest.mark.slow
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
TWO = ["--on", "slurm", "--nodes", "2", "launch.time_limit_minutes=30", "launch.cpus_per_process=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster", SlurmdTimeout=5, MessageTimeout=3) as made:
        yield made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    promote = {"model": "tiny", "min_gain": -1.0}
    return of_60_steps(tmp_path_factory.mktemp("recipe"), valid={"valid_every_steps": 30}, promote=promote)


@pytest.fixture(scope="module")
def alone(file: Path) -> RunDir:
    return run_recipe(file, out=file.parent / "alone", until="train")


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, file: Path) -> RunDir:
    """The whole recipe, on two nodes."""
    run = RunDir(file.parent / "undisturbed")
    done = tunesmith(slurm, file.parent, "run", file, *TWO, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "The tuned model is better" in done.stdout
    assert "train: working" in done.stderr
    return run


def tunesmith(slurm: Cluster, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a verb on the head of the cluster; jobs that it submits have its environment."""
    command = [sys.executable, "-m", "tunesmith", *map(str, words)]
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TUNESMITH_REGISTRY": str(folder / "registry")}
    return slurm.run(command, cwd=folder, env=own, timeout=300)


def in_line(slurm: Cluster, verb: str, file: Path, run: RunDir, *changes: str) -> StageJob:
    """Submit a recipe; return the job that trains."""
    done = tunesmith(slurm, file.parent, verb, file, *changes, *TWO, "--out", run, "--detach")
    assert done.returncode == 0, done.stderr
    return next(job for job in read_jobs(run.launch) if job.stage == "train")


def trained_for(run: RunDir, steps: int) -> None:
    assert until(lambda: steps_done(run) >= steps, 120), "it does not train"


def on_node(slurm: Cluster, number: int) -> list[psutil.Process]:
    """Return what runs on a node, by its commands."""
    inside = {one.pid for one in psutil.Process(slurm.nodes[number].pid).children(recursive=True)}
    return [one for one in psutil.process_iter(["pid", "name", "cmdline"]) if one.pid in inside]


def rank(slurm: Cluster, number: int) -> psutil.Process:
    """Return the process of a rank: the only one of its node that trains."""
    for one in on_node(slurm, number + 1):
        command = one.info["cmdline"] or [""]
        if "tunesmith" in command and command[0].endswith("python"):
            return one
    raise AssertionError(f"rank {number} is not there")


def ends(slurm: Cluster, job: StageJob, state: str, restarts: int) -> None:
    """Wait for a job to end, and say how it must have."""
    slurm.wait(job.job, ENDED, timeout=240)
    found = slurm.job(job.job)
    assert (found["JobState"], found["Restarts"]) == (state, str(restarts))


def weights(run: RunDir) -> str:
    return digest_file(resolve(f"run:{run.path}").path / "adapter_model.safetensors")


def test_a_recipe_goes_to_its_verdict(slurm: Cluster, undisturbed: RunDir, alone: RunDir) -> None:
    assert same(undisturbed, alone)
    manifest = undisturbed.manifest("train")
    assert manifest is not None
    assert manifest["processes"] == 2
    assert read_json(undisturbed.verdict)["verdict"]
    assert [job.stage for job in read_jobs(undisturbed.launch)] == ["prepare", "train", "evaluate", "promote"]
    assert {exit_code(undisturbed, job.stage) for job in read_jobs(undisturbed.launch)} == {0}
    said = tunesmith(slurm, undisturbed.path.parent, "status", undisturbed, "--json")
    assert [stage["state"] for stage in json.loads(said.stdout)["stages"]] == ["done"] * 4
    again = tunesmith(slurm, undisturbed.path.parent, "run", undisturbed)
    assert again.returncode == 0, again.stderr
    assert "all stages were done before" in again.stderr


def test_rows_that_cannot_be_had_are_told_before_there_are_jobs(slurm: Cluster, file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "run", file, "data.source={hub: no/such}", *TWO, "--out", run)
    assert done.returncode == 3
    assert "no/such: the hub is not asked, because HF_HUB_OFFLINE is set" in done.stderr
    assert read_jobs(run.launch) == []


def test_a_full_fine_tune_in_parts(slurm: Cluster, tmp_path: Path) -> None:
    file = of_60_steps(tmp_path, valid={"valid_every_steps": 30, "learning_rate": 0.001}, tuning={"method": "full"})
    alone, run = run_recipe(file, out=tmp_path / "alone"), RunDir(tmp_path / "run")
    in_parts = ("launch.sharding=full", *TWO)
    assert "each with its part of every layer" in tunesmith(slurm, tmp_path, "plan", file, *in_parts).stdout
    job = in_line(slurm, "run", file, run, "launch.sharding=full")
    trained_for(run, 7)
    rank(slurm, 1).kill()
    ends(slurm, job, "COMPLETED", restarts=1)
    behind = next(job for job in read_jobs(run.launch) if job.stage == "evaluate")
    ends(slurm, behind, "COMPLETED", restarts=0)
    assert same(run, alone)
    assert (run.manifest("train") or {})["sharding"] == "full"
    assert read_json(run.verdict)["verdict"] == read_json(alone.verdict)["verdict"]


def test_the_scripts_hold_no_absolute_path(undisturbed: RunDir) -> None:
    for script in undisturbed.launch.glob("*.sbatch"):
        assert re.findall(r"(?<![\w.])/\S+", script.read_text()) == ["/bin/bash"]


def test_a_warning_saves_and_the_job_goes_on(slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = in_line(slurm, "evaluate", file, run)
    trained_for(run, 7)
    slurm.run(["scancel", "--signal=USR1", job.job], timeout=60)
    ends(slurm, job, "COMPLETED", restarts=1)
    log = log_path(run, job).read_text()
    assert "ended with 75; waits for another turn" in log
    assert re.search(r"going on from step \d+ of 60", log)
    assert weights(run) == weights(undisturbed)
    behind = next(job for job in read_jobs(run.launch) if job.stage == "evaluate")
    ends(slurm, behind, "COMPLETED", restarts=0)  # it has waited all the time


def test_a_rank_that_is_killed_is_made_good(slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = in_line(slurm, "train", file, run)
    trained_for(run, 7)
    rank(slurm, 0).kill()
    ends(slurm, job, "COMPLETED", restarts=1)
    assert "ended with 137; waits for another turn" in log_path(run, job).read_text()
    assert weights(run) == weights(undisturbed)


def test_a_node_that_is_cut_off_is_made_good(slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = in_line(slurm, "train", file, run, "launch.timeout_minutes=0.5")
    trained_for(run, 7)
    slurm.cut(1)  # that of the script and of the first process, which live on and hold the run
    slurm.wait(job.job, {"PENDING"}, timeout=120)  # Slurm gives the node up and puts the job in line again
    # Back again, the node ends what is left of the first turn. A second one that Slurm 22.05 starts there in the same
    # second ends with it ("Job credential revoked"), which no script can help: here there is no other node to take.
    slurm.run(["scontrol", "hold", job.job], timeout=60)
    slurm.join(1)
    slurm.wait_idle(120)
    assert until(lambda: "slurmstepd" not in {one.info["name"] for one in on_node(slurm, 1)}, 120), "it does not end"
    time.sleep(2)
    slurm.run(["scontrol", "release", job.job], timeout=60)
    slurm.wait(job.job, ENDED, timeout=240)
    assert slurm.job(job.job)["JobState"] == "COMPLETED"
    assert weights(run) == weights(undisturbed)


def test_a_rank_that_hangs_is_told_and_made_good(
    slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    job = in_line(slurm, "train", file, run, "launch.timeout_minutes=0.3")
    trained_for(run, 7)
    rank(slurm, 1).suspend()
    ends(slurm, job, "COMPLETED", restarts=1)  # the others wait 18 seconds, and srun a minute for the one that hangs
    assert "another process of this run is gone or hangs" in log_path(run, job).read_text()
    assert "distributed_c10d.py" in run.rank_stacks(0).read_text()
    assert weights(run) == weights(undisturbed)


def test_what_cannot_go_on_ends_the_chain(slurm: Cluster, file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "run", file, "train.learning_rate=1e30", *TWO, "--out", run)
    assert done.returncode == 7
    assert "train failed with 7" in done.stderr
    states = {job.stage: slurm.job(job.job)["JobState"] for job in read_jobs(run.launch)}
    assert states == {"prepare": "COMPLETED", "train": "FAILED", "evaluate": "CANCELLED", "promote": "CANCELLED"}
    said = tunesmith(slurm, file.parent, "status", run)
    assert "train     failed with 7" in said.stdout
    assert re.search("error: step .* became (nan|inf); the weights were not updated", said.stdout)
    assert list((run.path / "logs").glob("stacks-*")) == []


def test_a_cancelled_run_saves_and_stays_cancelled(
    slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    seldom = "train.save_every_steps=60"
    job = in_line(slurm, "run", file, run, seldom)
    trained_for(run, 7)
    refused = tunesmith(slurm, file.parent, "run", file, seldom, *TWO, "--out", run)
    assert refused.returncode == 2
    assert f"is in line already: train (job {job.job})" in refused.stderr
    done = tunesmith(slurm, file.parent, "cancel", run)
    assert done.stdout.splitlines()[0] == f"cancelled train, job {job.job}"
    ends(slurm, job, "CANCELLED", restarts=0)
    assert until(lambda: run.checkpoint(steps_done(run)).exists(), 10), "what it had done is saved"
    assert tunesmith(slurm, file.parent, "cancel", run).returncode == 2
    ended = tunesmith(slurm, file.parent, "train", file, seldom, *TWO, "--out", run)  # the same command goes on
    assert ended.returncode == 0, ended.stderr
    assert weights(run) == weights(undisturbed)


def test_torchrun_trains_the_same_and_its_exit_codes_are_kept(
    slurm: Cluster, file: Path, alone: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "train", file, *TWO, "launch.launcher=torchrun", "--out", run)
    assert done.returncode == 0, done.stderr
    assert same(run, alone)
    changes = ["launch.launcher=torchrun", "train.learning_rate=1e30", "--out", tmp_path / "fails"]
    assert tunesmith(slurm, file.parent, "train", file, *TWO, *changes).returncode == 7


@pytest.mark.parametrize("launcher", ["srun", "accelerate"])
def test_the_recipe_of_gemma_runs_scaled_down(launcher: str, slurm: Cluster, shared_data: Path, tmp_path: Path) -> None:
    base = save_plain_model(tmp_path / "model", "gemma3_text")
    changes = [
        *FEW, f"model.base={base}", source(shared_data / "oasst1" / "oasst1-en.top1-chatml.jsonl"),
        "data.split={valid: 0.1, test: 0.2}", f"launch.launcher={launcher}", "launch.container=null",
        "launch.gpus_per_node=1", "launch.cpus_per_process=1", "launch.time_limit_minutes=30",
        "launch.exports={ACCELERATE_USE_CPU: 'true'}",
    ]  # fmt: skip
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, tmp_path, "train", RECIPES / "gemma-chat-slurm" / "recipe.yaml", *changes, "--out", run)
    assert done.returncode == 0, done.stderr
    manifest = run.manifest("train")
    assert manifest is not None
    assert (manifest["processes"], manifest["steps"]) == (2, 3)


def test_the_trials_of_a_sweep_are_an_array(slurm: Cluster, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    axis = ["--over", "tuning.rank=2,4", "train.max_steps=2", "launch.time_limit_minutes=30"]
    given = tunesmith(slurm, tmp_path, "sweep", file, *axis, "--on", "slurm", "--out", folder)
    assert given.returncode == 0, given.stderr
    match = re.search(r"2 trials: job (\d+)", given.stderr)
    assert match is not None
    for task in (1, 2):
        slurm.wait(f"{match[1]}_{task}", {"COMPLETED"}, timeout=240)
    assert {path.read_text() for path in (folder / "launch").glob("*.exit-code")} == {"0\n"}
    collected = tunesmith(slurm, tmp_path, "sweep", folder)
    assert collected.returncode == 0, collected.stderr
    assert "rank 4" in collected.stdout
    again = tunesmith(slurm, tmp_path, "sweep", folder, "--on", "slurm")
    assert "all trials are done" in again.stderr
