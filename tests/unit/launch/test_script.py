"""Batch scripts are plain bash that says what the recipe says, and holds no absolute path."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.launch.script import Job, script_of
from tunesmith.recipe.launch import SlurmLaunch

FOLDER = "runs/viggo/ab12cd34"
TRAIN = Job("viggo", "train", f"train {FOLDER} --on local", by_all=True)


def script(job: Job = TRAIN, **settings: Any) -> str:
    return script_of(job, SlurmLaunch(on="slurm", **settings), FOLDER)


def options(text: str) -> dict[str, str]:
    """Return what the script asks sbatch for."""
    return {m[1]: m[2] for m in re.finditer(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE)}


def test_what_is_asked_for() -> None:
    text = script(
        nodes=2, gpus_per_node=4, cpus_per_process=16, memory_gib_per_node=400, time_limit_minutes=240,
        warning_minutes=10, account="a1", partition="normal", qos="high", sbatch=["--constraint=a100"],
    )  # fmt: skip
    assert options(text) == {
        "job-name": "viggo-train", "account": "a1", "partition": "normal", "qos": "high", "nodes": "2",
        "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "16", "mem": "400G", "time": "240",
        "output": f"{FOLDER}/logs/train-%j.log", "open-mode": "append", "requeue": "", "signal": "USR1@600",
        "constraint": "a100",
    }  # fmt: skip
    assert "srun --wait=60 --cpus-per-task=16 \\\n    python -m tunesmith train runs/viggo/ab12cd34 --on local" in text


def test_a_stage_of_one_process_takes_one_machine_and_no_gpu() -> None:
    text = script(
        Job("viggo", "prepare", f"prepare {FOLDER} --on local", by_all=False),
        nodes=2,
        gpus_per_node=4,
        partition="normal",
    )
    asked = options(text)
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("1", "1")
    assert "gpus-per-node" not in asked


def test_what_the_cluster_decides_is_left_to_it() -> None:
    assert options(script()).keys().isdisjoint({"account", "partition", "qos", "time", "mem", "cpus-per-task"})


@pytest.mark.parametrize("starter", ["torchrun", "accelerate"])
def test_a_starter_of_its_own_has_a_task_on_each_machine(starter: str) -> None:
    text = script(nodes=2, gpus_per_node=4, cpus_per_process=16, starter=starter)
    asked = options(text)
    assert (asked["ntasks-per-node"], asked["cpus-per-task"], asked["signal"]) == ("1", "64", "TERM@300")
    assert "-m tunesmith.launch.unchanged" in text
    assert "8" in text if starter == "accelerate" else "--nnodes=2 --nproc-per-node=4" in text


def test_the_user_s_own_configuration_of_accelerate_counts() -> None:
    text = script(nodes=2, starter="accelerate", accelerate_config="fsdp.yaml", processes_per_node=2)
    assert "--config_file=fsdp.yaml --num_machines=2 --num_processes=4" in text
    assert "--multi_gpu" not in text


def test_containers_modules_and_variables() -> None:
    text = script(
        container={"image": "nvcr.io/x:1", "mounts": ["/a:/a", "/b"]},
        modules=["cuda/12", "gcc"],
        exports={"A": "x y'z"},
    )
    assert "--container-image=nvcr.io/x:1 --container-mounts=/a:/a,/b" in text
    assert "module load cuda/12 gcc\nexport A='x y'\"'\"'z'\n\nset -euo pipefail" in text, (
        "modules know nothing of set -u"
    )
    assert "--environment=mine" in script(container={"environment": "mine"})


def test_an_array_has_a_log_and_an_exit_code_for_each_task() -> None:
    text = script(Job("viggo", "rung", 'ladder x --rung "$SLURM_ARRAY_TASK_ID"', by_all=True, tasks="1,2,5"))
    assert options(text)["array"] == "1,2,5"
    assert options(text)["output"] == f"{FOLDER}/logs/rung-%A-%a.log"
    assert f'echo "$code" >{FOLDER}/launch/rung-$SLURM_ARRAY_TASK_ID.exit-code' in text


@pytest.mark.parametrize("folder", ["runs/a b", "runs/$x", "runs/100%", "-runs", "runs/a\nb", "runs/'a"])
def test_a_folder_that_means_something_to_a_shell_is_refused(folder: str) -> None:
    with pytest.raises(RecipeError, match="cannot stand in a batch script"):
        script_of(TRAIN, SlurmLaunch(on="slurm"), folder)


CASES: list[dict[str, Any]] = [
    {},
    {"nodes": 2, "processes_per_node": 2},
    {"nodes": 2, "processes_per_node": 2, "starter": "torchrun"},
    {"nodes": 2, "processes_per_node": 2, "starter": "accelerate"},
    {"container": {"environment": "x"}, "modules": ["a"], "exports": {"A": "it's"}},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_it_is_bash(settings: dict[str, Any]) -> None:
    assert shutil.which("bash")
    done = subprocess.run(["bash", "-n"], input=script(**settings), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "state", "restarts", "again"),
    [
        (0, "RUNNING", 0, False), (75, "RUNNING", 0, True), (75, "RUNNING", 19, True), (75, "RUNNING", 20, False),
        (75, "COMPLETING", 0, False), (137, "RUNNING", 1, True), (7, "RUNNING", 0, False), (1, "RUNNING", 0, False),
    ],
)  # fmt: skip
def test_what_can_go_on_waits_for_another_turn(
    code: int, state: str, restarts: int, again: bool, tmp_path: Path
) -> None:
    """Run the script itself, with commands of Slurm that only say what they were asked."""
    commands = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": 'echo "$@" >>asked', "sleep": "true"}
    (tmp_path / "bin").mkdir()
    for name, line in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    (tmp_path / FOLDER / "launch").mkdir(parents=True)
    told = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash"], input=script(), cwd=tmp_path, env=told, capture_output=True, text=True)
    assert done.returncode == code
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 12\n" if again else "")
    assert (tmp_path / FOLDER / "launch" / "train.exit-code").read_text() == f"{code}\n"
