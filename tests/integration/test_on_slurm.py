"""Run a recipe on a real Slurm cluster of two nodes, without faults and with each, and compare the weights."""

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
from tunesmith.slurm.jobs import StageJob, log_path, read_exit_code, read_jobs

pytestmark = pytest.mark.slow
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
TWO = ["--on", "slurm", "--nodes", "2", "launch.time_limit_minutes=30", "launch.cpus_per_process=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster", SlurmdTimeout=5, MessageTimeout=3) as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    promote = {"model": "tiny", "min_gain": -1.0}
    return of_60_steps(tmp_path_factory.mktemp("recipe"), valid={"valid_every_steps": 30}, promote=promote)


@pytest.fixture(scope="module")
def local_run(file: Path) -> RunDir:
    return run_recipe(file, out=file.parent / "local", until="train")


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, file: Path) -> RunDir:
    """A run of all stages on two nodes."""
    run = RunDir(file.parent / "undisturbed")
    done = tunesmith(slurm, file.parent, "run", file, *TWO, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "The tuned model is better" in done.stdout
    assert "train: working" in done.stderr
    return run


def tunesmith(slurm: Cluster, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command on the head of the cluster. The jobs that it submits inherit its environment."""
    command = [sys.executable, "-m", "tunesmith", *map(str, arguments)]
    environment = {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "TUNESMITH_REGISTRY": str(folder / "registry"),
    }
    return slurm.run(command, cwd=folder, env=environment, timeout=300)


def submit(slurm: Cluster, command: str, file: Path, run: RunDir, *changes: str) -> StageJob:
    """Submit a recipe and return the job of `train`."""
    done = tunesmith(slurm, file.parent, command, file, *changes, *TWO, "--out", run, "--detach")
    assert done.returncode == 0, done.stderr
    return next(job for job in read_jobs(run.launch) if job.stage == "train")


def wait_for_steps(run: RunDir, steps: int) -> None:
    assert until(lambda: steps_done(run) >= steps, 120), "no training steps"


def processes_on(slurm: Cluster, node: int) -> list[psutil.Process]:
    """Return the processes of a node, with their names and command lines."""
    pids = {process.pid for process in psutil.Process(slurm.nodes[node].pid).children(recursive=True)}
    return [process for process in psutil.process_iter(["pid", "name", "cmdline"]) if process.pid in pids]


def rank_process(slurm: Cluster, rank: int) -> psutil.Process:
    """Return the process of a rank, the only one on its node that trains."""
    for process in processes_on(slurm, rank + 1):
        command = process.info["cmdline"] or [""]
        if "tunesmith" in command and command[0].endswith("python"):
            return process
    raise AssertionError(f"rank {rank} has no process")


def wait_for_end(slurm: Cluster, job: StageJob, state: str, restarts: int) -> None:
    """Wait until a job has ended, and assert its state and how often it was requeued."""
    slurm.wait(job.job, ENDED, timeout=240)
    fields = slurm.job(job.job)
    assert (fields["JobState"], fields["Restarts"]) == (state, str(restarts))


def weights(run: RunDir) -> str:
    return digest_file(resolve(f"run:{run.path}").path / "adapter_model.safetensors")


def test_run_on_two_nodes_reaches_its_verdict(slurm: Cluster, undisturbed: RunDir, local_run: RunDir) -> None:
    assert same(undisturbed, local_run)
    manifest = undisturbed.manifest("train")
    assert manifest is not None
    assert manifest["processes"] == 2
    assert read_json(undisturbed.verdict)["verdict"]
    assert [job.stage for job in read_jobs(undisturbed.launch)] == ["prepare", "train", "evaluate", "promote"]
    assert {read_exit_code(undisturbed, job.stage) for job in read_jobs(undisturbed.launch)} == {0}
    status = tunesmith(slurm, undisturbed.path.parent, "status", undisturbed, "--json")
    assert [stage["state"] for stage in json.loads(status.stdout)["stages"]] == ["done"] * 4
    again = tunesmith(slurm, undisturbed.path.parent, "run", undisturbed)
    assert again.returncode == 0, again.stderr
    assert "all stages are already done" in again.stderr


def test_rows_that_cannot_be_fetched_are_reported_before_jobs_are_submitted(
    slurm: Cluster, file: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "run", file, "data.source={hub: no/such}", *TWO, "--out", run)
    assert done.returncode == 3
    assert "no/such" in done.stderr
    assert read_jobs(run.launch) == []


def test_sharded_full_fine_tuning_survives_a_killed_rank(slurm: Cluster, tmp_path: Path) -> None:
    file = of_60_steps(tmp_path, valid={"valid_every_steps": 30, "learning_rate": 0.001}, tuning={"method": "full"})
    local_run, run = run_recipe(file, out=tmp_path / "local"), RunDir(tmp_path / "run")
    sharded = ("launch.sharding=full", *TWO)
    plan = tunesmith(slurm, tmp_path, "plan", file, *sharded, "--json")
    assert json.loads(plan.stdout)["processes"] == 2
    job = submit(slurm, "run", file, run, "launch.sharding=full")
    wait_for_steps(run, 7)
    rank_process(slurm, 1).kill()
    wait_for_end(slurm, job, "COMPLETED", restarts=1)
    evaluation = next(job for job in read_jobs(run.launch) if job.stage == "evaluate")
    wait_for_end(slurm, evaluation, "COMPLETED", restarts=0)
    assert same(run, local_run)
    assert (run.manifest("train") or {})["sharding"] == "full"
    assert read_json(run.verdict)["verdict"] == read_json(local_run.verdict)["verdict"]


def test_batch_scripts_have_no_absolute_path(undisturbed: RunDir) -> None:
    for script in undisturbed.launch.glob("*.sbatch"):
        assert re.findall(r"(?<![\w.])/\S+", script.read_text()) == ["/bin/bash"]


def test_signal_before_the_time_limit_saves_and_requeues(
    slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    job = submit(slurm, "evaluate", file, run)
    wait_for_steps(run, 7)
    slurm.run(["scancel", "--signal=USR1", job.job], timeout=60)
    wait_for_end(slurm, job, "COMPLETED", restarts=1)
    log = log_path(run, job).read_text()
    assert "ended with 75; requeuing" in log
    assert re.search(r"resuming from step \d+ of 60", log)
    assert weights(run) == weights(undisturbed)
    evaluation = next(job for job in read_jobs(run.launch) if job.stage == "evaluate")
    wait_for_end(slurm, evaluation, "COMPLETED", restarts=0)  # it waited for the requeued job


def test_killed_rank_is_requeued_and_resumes(slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = submit(slurm, "train", file, run)
    wait_for_steps(run, 7)
    rank_process(slurm, 0).kill()
    wait_for_end(slurm, job, "COMPLETED", restarts=1)
    assert "ended with 137; requeuing" in log_path(run, job).read_text()
    assert weights(run) == weights(undisturbed)


def test_lost_node_is_requeued_and_resumes(slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = submit(slurm, "train", file, run, "launch.timeout_minutes=0.5")
    wait_for_steps(run, 7)
    slurm.cut(1)  # the script and rank 0 keep running on it, and rank 0 holds the lock
    slurm.wait(job.job, {"PENDING"}, timeout=120)  # Slurm gives up the node and requeues the job
    # When the node is back, it ends what is left of the first start. If Slurm 22.05 starts the job there again within
    # the same second, the new start ends too ("Job credential revoked"). A script cannot prevent that, and there is no
    # other node, so the job is held until the first start is gone.
    slurm.run(["scontrol", "hold", job.job], timeout=60)
    slurm.join(1)
    slurm.wait_idle(120)
    assert until(lambda: "slurmstepd" not in {process.info["name"] for process in processes_on(slurm, 1)}, 120)
    time.sleep(2)
    slurm.run(["scontrol", "release", job.job], timeout=60)
    slurm.wait(job.job, ENDED, timeout=240)
    assert slurm.job(job.job)["JobState"] == "COMPLETED"
    assert weights(run) == weights(undisturbed)


def test_hanging_rank_is_reported_and_the_job_resumes(
    slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    job = submit(slurm, "train", file, run, "launch.timeout_minutes=0.3")
    wait_for_steps(run, 7)
    rank_process(slurm, 1).suspend()
    wait_for_end(slurm, job, "COMPLETED", restarts=1)  # rank 0 waits 18 seconds, and srun a minute for the hanging rank
    assert "distributed_c10d.py" in run.rank_stacks(0).read_text()
    assert weights(run) == weights(undisturbed)


def test_failed_stage_cancels_the_stages_after_it(slurm: Cluster, file: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "run", file, "train.learning_rate=1e30", *TWO, "--out", run)
    assert done.returncode == 7
    assert "train failed with exit code 7" in done.stderr
    states = {job.stage: slurm.job(job.job)["JobState"] for job in read_jobs(run.launch)}
    assert states == {"prepare": "COMPLETED", "train": "FAILED", "evaluate": "CANCELLED", "promote": "CANCELLED"}
    status = tunesmith(slurm, file.parent, "status", run)
    assert "train     failed with 7" in status.stdout
    assert re.search("error: step .*(nan|inf)", status.stdout)
    assert list((run.path / "logs").glob("stacks-*")) == []


def test_cancelled_run_saves_a_checkpoint_and_is_not_requeued(
    slurm: Cluster, file: Path, undisturbed: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    save_at_end = "train.save_every_steps=60"
    job = submit(slurm, "run", file, run, save_at_end)
    wait_for_steps(run, 7)
    refused = tunesmith(slurm, file.parent, "run", file, save_at_end, *TWO, "--out", run)
    assert refused.returncode == 2
    assert f"train (job {job.job})" in refused.stderr
    done = tunesmith(slurm, file.parent, "cancel", run)
    assert done.stdout.splitlines()[0] == f"cancelled train, job {job.job}"
    wait_for_end(slurm, job, "CANCELLED", restarts=0)
    assert until(lambda: run.checkpoint(steps_done(run)).exists(), 10), "no checkpoint was saved"
    assert tunesmith(slurm, file.parent, "cancel", run).returncode == 2
    ended = tunesmith(slurm, file.parent, "train", file, save_at_end, *TWO, "--out", run)  # the same command resumes
    assert ended.returncode == 0, ended.stderr
    assert weights(run) == weights(undisturbed)


def test_torchrun_gives_the_same_weights_and_exit_codes(
    slurm: Cluster, file: Path, local_run: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    done = tunesmith(slurm, file.parent, "train", file, *TWO, "launch.launcher=torchrun", "--out", run)
    assert done.returncode == 0, done.stderr
    assert same(run, local_run)
    changes = ["launch.launcher=torchrun", "train.learning_rate=1e30", "--out", tmp_path / "fails"]
    assert tunesmith(slurm, file.parent, "train", file, *TWO, *changes).returncode == 7


@pytest.mark.parametrize("launcher", ["srun", "accelerate"])
def test_gemma_recipe_runs_scaled_down(launcher: str, slurm: Cluster, shared_data: Path, tmp_path: Path) -> None:
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


def test_sweep_is_a_job_array(slurm: Cluster, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    axis = ["--over", "tuning.rank=2,4", "train.max_steps=2", "launch.time_limit_minutes=30"]
    submitted = tunesmith(slurm, tmp_path, "sweep", file, *axis, "--on", "slurm", "--out", folder)
    assert submitted.returncode == 0, submitted.stderr
    match = re.search(r"2 trials: job (\d+)", submitted.stderr)
    assert match is not None
    for task in (1, 2):
        slurm.wait(f"{match[1]}_{task}", {"COMPLETED"}, timeout=240)
    assert {path.read_text() for path in (folder / "launch").glob("*.exit-code")} == {"0\n"}
    collected = tunesmith(slurm, tmp_path, "sweep", folder)
    assert collected.returncode == 0, collected.stderr
    assert "rank 4" in collected.stdout
    again = tunesmith(slurm, tmp_path, "sweep", folder, "--on", "slurm")
    assert "all trials are done" in again.stderr
