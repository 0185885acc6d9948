"""Batch scripts are plain bash that follows the recipe's `launch` section."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.slurm.script import Job, batch_script

FOLDER = "runs/viggo/ab12cd34"
TRAIN = Job("viggo", "train", f"train {FOLDER} --on local", on_all_ranks=True)


def script(job: Job = TRAIN, **settings: Any) -> str:
    return batch_script(job, SlurmLaunch(on="slurm", **settings), FOLDER)


def options(text: str) -> dict[str, str]:
    """Return the options of sbatch in a script."""
    return {m[1]: m[2] for m in re.finditer(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE)}


def test_sbatch_options_follow_the_recipe() -> None:
    text = script(
        nodes=2, gpus_per_node=4, cpus_per_process=16, memory_gib_per_node=400, time_limit_minutes=240,
        grace_minutes=10, account="a1", partition="normal", qos="high", sbatch=["--constraint=a100"],
    )  # fmt: skip
    assert options(text) == {
        "job-name": "viggo-train", "account": "a1", "partition": "normal", "qos": "high", "nodes": "2",
        "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "16", "mem": "400G", "time": "240",
        "output": f"{FOLDER}/logs/train-%j.log", "open-mode": "append", "requeue": "", "signal": "USR1@600",
        "constraint": "a100",
    }  # fmt: skip
    assert (
        "--wait=300 --export=ALL --cpus-per-task=16 \\\n    python -m tunesmith train runs/viggo/ab12cd34 --on local"
        in text
    )


def test_gpu_type_and_all_memory() -> None:
    values = options(script(gpus_per_node=4, gpu_type="1g.10gb", memory_gib_per_node="all"))
    assert (values["gpus-per-node"], values["mem"]) == ("1g.10gb:4", "0")


def test_stage_on_rank_0_alone_gets_one_node_and_no_gpu() -> None:
    text = script(
        Job("viggo", "prepare", f"prepare {FOLDER} --on local", on_all_ranks=False),
        nodes=2,
        gpus_per_node=4,
        partition="normal",
    )
    values = options(text)
    assert (values["nodes"], values["ntasks-per-node"]) == ("1", "1")
    assert "gpus-per-node" not in values


def test_sbatch_options_without_a_value_are_left_out() -> None:
    assert options(script()).keys().isdisjoint({"account", "partition", "qos", "time", "mem", "cpus-per-task"})


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_torchrun_and_accelerate_have_one_task_per_node(launcher: str) -> None:
    text = script(nodes=2, gpus_per_node=4, cpus_per_process=16, launcher=launcher)
    values = options(text)
    assert (values["ntasks-per-node"], values["cpus-per-task"], values["signal"]) == ("1", "64", "TERM@300")
    assert "-m tunesmith.slurm.exit_code" in text
    assert ("--num_processes=8" if launcher == "accelerate" else "--nnodes=2 --nproc-per-node=4") in text


def test_accelerate_config_file_is_used() -> None:
    text = script(nodes=2, launcher="accelerate", accelerate_config="fsdp.yaml", processes_per_node=2)
    assert "--config_file=fsdp.yaml --num_machines=2 --num_processes=4" in text
    assert "--multi_gpu" not in text


def test_containers_modules_and_variables() -> None:
    text = script(
        container={"image": "nvcr.io/x:1", "mounts": ["/a:/a", "/b"]},
        modules=["cuda/12", "gcc"],
        exports={"A": "x y'z"},
    )
    assert '--container-image=nvcr.io/x:1 --container-mounts="$PWD:$PWD",/a:/a,/b --container-workdir="$PWD"' in text
    assert "/usr/bin/env python -m tunesmith train" in text, "srun looks for python outside the container"
    lines = text.splitlines()
    order = ["module load cuda/12 gcc", "export A='x y'\"'\"'z'", "set -euo pipefail"]
    assert sorted(order, key=lines.index) == order, "module scripts may use unset variables"
    assert "--environment=mine" in script(container={"environment": "mine"})


@pytest.mark.parametrize(("timeout", "seconds"), [(0.1, 60), (2, 120), (30, 300)])
def test_srun_waits_for_the_other_tasks(timeout: float, seconds: int) -> None:
    assert f"--kill-on-bad-exit=0 --wait={seconds} " in script(nodes=2, timeout_minutes=timeout)


def test_job_array_has_a_log_and_an_exit_code_for_each_task() -> None:
    text = script(Job("viggo", "trial", 'sweep x --trial "$SLURM_ARRAY_TASK_ID"', on_all_ranks=True, array="1,2,5"))
    assert options(text)["array"] == "1,2,5"
    assert options(text)["output"] == f"{FOLDER}/logs/trial-%A-%a.log"
    assert f'echo "$code" >{FOLDER}/launch/trial-$SLURM_ARRAY_TASK_ID.exit-code' in text


@pytest.mark.parametrize("folder", ["runs/a b", "runs/$x", "runs/100%", "-runs", "runs/a\nb", "runs/'a"])
def test_run_folder_with_characters_of_the_shell_is_refused(folder: str) -> None:
    with raises(RecipeError, "script-path", repr(folder)):
        batch_script(TRAIN, SlurmLaunch(on="slurm"), folder)


CASES: list[dict[str, Any]] = [
    {},
    {"nodes": 2, "processes_per_node": 2},
    {"nodes": 2, "processes_per_node": 2, "launcher": "torchrun"},
    {"nodes": 2, "processes_per_node": 2, "launcher": "accelerate"},
    {"container": {"environment": "x"}, "modules": ["a"], "exports": {"A": "it's"}},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_batch_script_is_valid_bash(settings: dict[str, Any]) -> None:
    assert shutil.which("bash")
    done = subprocess.run(["bash", "-n"], input=script(**settings), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def run_script(tmp_path: Path, text: str, **commands: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a batch script with these commands of Slurm; return the finished process and the calls of `scontrol`."""
    replacements = {"srun": "exit 0", "scontrol": "true", "sleep": "true"} | commands
    (tmp_path / "bin").mkdir()
    for name, line in replacements.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/bash\n[[ $0 != */scontrol ]] || echo "$@" >>{tmp_path}/calls\n{line}\n')
        path.chmod(0o755)
    (tmp_path / FOLDER / "launch").mkdir(parents=True, exist_ok=True)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    environment |= {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"} if "--array" in text else {}
    done = subprocess.run(["bash"], input=text, cwd=tmp_path, env=environment, capture_output=True, text=True)
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def exit_code_file(tmp_path: Path, stage: str = "train") -> str | None:
    """Return the content of the file with a stage's exit code; None if there is none."""
    path = tmp_path / FOLDER / "launch" / f"{stage}.exit-code"
    return path.read_text() if path.exists() else None


# An accepted requeue ends the shell of the script.
ACCEPT_REQUEUE = 'echo "JobState=RUNNING"; [[ $1 != requeue ]] || kill $PPID'


@pytest.mark.parametrize("code", [75, 137])
def test_resumable_job_is_requeued(code: int, tmp_path: Path) -> None:
    (tmp_path / FOLDER / "launch").mkdir(parents=True)
    (tmp_path / FOLDER / "launch" / "train.exit-code").write_text("7\n")
    _, calls = run_script(tmp_path, script(), srun=f"exit {code}", scontrol=ACCEPT_REQUEUE)
    assert calls[-1] == "requeue 12"
    assert exit_code_file(tmp_path) is None, "the file of an earlier start is removed"


@pytest.mark.parametrize(
    ("code", "state", "max_requeues"),
    [(0, "RUNNING", 20), (75, "CANCELLED", 20), (75, "RUNNING", 0), (7, "RUNNING", 20)],
)
def test_failed_or_cancelled_job_is_not_requeued(code: int, state: str, max_requeues: int, tmp_path: Path) -> None:
    text = script(max_requeues=max_requeues)
    done, calls = run_script(tmp_path, text, srun=f"exit {code}", scontrol=f'echo "x JobState={state} y"')
    assert (done.returncode, exit_code_file(tmp_path)) == (code, f"{code}\n")
    assert not any("requeue" in line for line in calls)


def test_requeue_is_tried_again_and_the_exit_code_kept(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, script(), srun="exit 75", scontrol="exit 1")
    assert calls.count("requeue 12") == 3
    assert (done.returncode, exit_code_file(tmp_path)) == (75, "75\n")


def test_task_of_a_job_array_requeues_itself_alone(tmp_path: Path) -> None:
    text = script(Job("viggo", "trial", 'sweep x --trial "$SLURM_ARRAY_TASK_ID"', on_all_ranks=True, array="1,3"))
    _, calls = run_script(tmp_path, text, srun="exit 75", scontrol=ACCEPT_REQUEUE)
    assert calls == ["show job --oneliner 12_3", "requeue 12_3"]
    (tmp_path / "bin").rename(tmp_path / "old")
    run_script(tmp_path, text)
    assert exit_code_file(tmp_path, "trial-3") == "0\n"
