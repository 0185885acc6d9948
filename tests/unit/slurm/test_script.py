"""Batch scripts are plain bash that says what the recipe says, and holds no absolute path."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.slurm.script import Job, batch_script

FOLDER = "runs/viggo/ab12cd34"
TRAIN = Job("viggo", "train", f"train {FOLDER} --on local", on_all_ranks=True)


def script(job: Job = TRAIN, **settings: Any) -> str:
    return batch_script(job, SlurmLaunch(on="slurm", **settings), FOLDER)


def options(text: str) -> dict[str, str]:
    """Return what the script asks sbatch for."""
    return {m[1]: m[2] for m in re.finditer(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE)}


def test_what_is_asked_for() -> None:
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


def test_gpus_of_a_kind_and_all_memory() -> None:
    asked = options(script(gpus_per_node=4, gpu_type="1g.10gb", memory_gib_per_node="all"))
    assert (asked["gpus-per-node"], asked["mem"]) == ("1g.10gb:4", "0")


def test_a_stage_of_one_process_takes_one_machine_and_no_gpu() -> None:
    text = script(
        Job("viggo", "prepare", f"prepare {FOLDER} --on local", on_all_ranks=False),
        nodes=2,
        gpus_per_node=4,
        partition="normal",
    )
    asked = options(text)
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("1", "1")
    assert "gpus-per-node" not in asked


def test_what_the_cluster_decides_is_left_to_it() -> None:
    assert options(script()).keys().isdisjoint({"account", "partition", "qos", "time", "mem", "cpus-per-task"})


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_of_its_own_has_a_task_on_each_machine(launcher: str) -> None:
    text = script(nodes=2, gpus_per_node=4, cpus_per_process=16, launcher=launcher)
    asked = options(text)
    assert (asked["ntasks-per-node"], asked["cpus-per-task"], asked["signal"]) == ("1", "64", "TERM@300")
    assert "-m tunesmith.slurm.exit_code" in text
    assert ("--num_processes=8" if launcher == "accelerate" else "--nnodes=2 --nproc-per-node=4") in text


def test_the_user_s_own_configuration_of_accelerate_counts() -> None:
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
    assert "/usr/bin/env python -m tunesmith train" in text, "srun would look for python outside"
    lines = text.splitlines()
    order = ["module load cuda/12 gcc", "export A='x y'\"'\"'z'", "set -euo pipefail"]
    assert sorted(order, key=lines.index) == order, "modules know nothing of set -u"
    assert "--environment=mine" in script(container={"environment": "mine"})


@pytest.mark.parametrize(("patience", "seconds"), [(0.1, 60), (2, 120), (30, 300)])
def test_the_others_have_time_to_end(patience: float, seconds: int) -> None:
    assert f"--kill-on-bad-exit=0 --wait={seconds} " in script(nodes=2, timeout_minutes=patience)


def test_an_array_has_a_log_and_an_exit_code_for_each_task() -> None:
    text = script(Job("viggo", "trial", 'sweep x --trial "$SLURM_ARRAY_TASK_ID"', on_all_ranks=True, tasks="1,2,5"))
    assert options(text)["array"] == "1,2,5"
    assert options(text)["output"] == f"{FOLDER}/logs/trial-%A-%a.log"
    assert f'echo "$code" >{FOLDER}/launch/trial-$SLURM_ARRAY_TASK_ID.exit-code' in text


@pytest.mark.parametrize("folder", ["runs/a b", "runs/$x", "runs/100%", "-runs", "runs/a\nb", "runs/'a"])
def test_a_folder_that_means_something_to_a_shell_is_refused(folder: str) -> None:
    with pytest.raises(RecipeError, match="cannot stand in a batch script"):
        batch_script(TRAIN, SlurmLaunch(on="slurm"), folder)


CASES: list[dict[str, Any]] = [
    {},
    {"nodes": 2, "processes_per_node": 2},
    {"nodes": 2, "processes_per_node": 2, "launcher": "torchrun"},
    {"nodes": 2, "processes_per_node": 2, "launcher": "accelerate"},
    {"container": {"environment": "x"}, "modules": ["a"], "exports": {"A": "it's"}},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_it_is_bash(settings: dict[str, Any]) -> None:
    assert shutil.which("bash")
    done = subprocess.run(["bash", "-n"], input=script(**settings), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def ran(tmp_path: Path, text: str, **commands: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script with commands of Slurm that do as given; return how it ended and what `scontrol` was asked."""
    made = {"srun": "exit 0", "scontrol": "true", "sleep": "true"} | commands
    (tmp_path / "bin").mkdir()
    for name, line in made.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/bash\n[[ $0 != */scontrol ]] || echo "$@" >>{tmp_path}/asked\n{line}\n')
        path.chmod(0o755)
    (tmp_path / FOLDER / "launch").mkdir(parents=True, exist_ok=True)
    told = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    told |= {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"} if "--array" in text else {}
    done = subprocess.run(["bash"], input=text, cwd=tmp_path, env=told, capture_output=True, text=True)
    asked = tmp_path / "asked"
    return done, asked.read_text().splitlines() if asked.exists() else []


def kept(tmp_path: Path, stage: str = "train") -> str | None:
    path = tmp_path / FOLDER / "launch" / f"{stage}.exit-code"
    return path.read_text() if path.exists() else None


# A requeue that Slurm takes ends the shell.
TAKEN = 'echo "JobState=RUNNING"; [[ $1 != requeue ]] || kill $PPID'


@pytest.mark.parametrize("code", [75, 137])
def test_what_can_go_on_waits_for_another_turn(code: int, tmp_path: Path) -> None:
    (tmp_path / FOLDER / "launch").mkdir(parents=True)
    (tmp_path / FOLDER / "launch" / "train.exit-code").write_text("7\n")
    _, asked = ran(tmp_path, script(), srun=f"exit {code}", scontrol=TAKEN)
    assert asked[-1] == "requeue 12"
    assert kept(tmp_path) is None, "not even what a turn before has left"


@pytest.mark.parametrize(
    ("code", "state", "most"), [(0, "RUNNING", 20), (75, "CANCELLED", 20), (75, "RUNNING", 0), (7, "RUNNING", 20)]
)
def test_what_cannot_or_must_not_ends(code: int, state: str, most: int, tmp_path: Path) -> None:
    text = script(max_requeues=most)
    done, asked = ran(tmp_path, text, srun=f"exit {code}", scontrol=f'echo "x JobState={state} y"')
    assert (done.returncode, kept(tmp_path)) == (code, f"{code}\n")
    assert not any("requeue" in line for line in asked)


def test_a_controller_that_does_not_answer_costs_neither_turn_nor_code(tmp_path: Path) -> None:
    done, asked = ran(tmp_path, script(), srun="exit 75", scontrol="exit 1")
    assert asked.count("requeue 12") == 3
    assert (done.returncode, kept(tmp_path)) == (75, "75\n")


def test_a_task_of_an_array_asks_for_itself_alone(tmp_path: Path) -> None:
    text = script(Job("viggo", "trial", 'sweep x --trial "$SLURM_ARRAY_TASK_ID"', on_all_ranks=True, tasks="1,3"))
    _, asked = ran(tmp_path, text, srun="exit 75", scontrol=TAKEN)
    assert asked == ["show job --oneliner 12_3", "requeue 12_3"]
    (tmp_path / "bin").rename(tmp_path / "old")
    ran(tmp_path, text)
    assert kept(tmp_path, "trial-3") == "0\n"
