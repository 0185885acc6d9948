"""A stage of a run -> the batch script that Slurm starts: plain bash, to be read, kept and submitted by hand too.

What a recipe may say is checked where it is read (`recipe/launch.py`): it cannot leave the place that it has here.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from tunesmith.core.dist_env import FIRST_PORT, PORT_COUNT
from tunesmith.core.errors import Interrupted, RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.launch import Launch, SlurmLaunch, local_world_size_of, world_size_of
from tunesmith.slurm.jobs import StageJob, exit_code_path, log_path

# How many seconds the others of a step have when one process has ended.
_SHORTEST_WAIT, _LONGEST_WAIT = 60, 300
# What sbatch takes literally in the name of a log: no blank, no quote, and no % of its own patterns.
_PLAIN_PATH = re.compile(r"(?!-)[\w./+=@,-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Job:
    """A stage as a job: the verb and arguments that do it, and whether all processes work at it or one does.

    `tasks` are the numbers of an array of jobs, such as "1,2,5"; the work then has its own in $SLURM_ARRAY_TASK_ID.
    """

    run: str
    stage: str
    work: str
    on_all_ranks: bool
    tasks: str = ""

    @property
    def name(self) -> str:
        """What it is called in the queue."""
        return f"{self.run}-{self.stage}"


def batch_script(job: Job, launch: Launch, folder: str) -> str:
    """Return the script of a stage.

    Args:
        job: what is to be done.
        launch: what the recipe says of the cluster.
        folder: the run's folder as seen from where jobs are submitted.

    Raises:
        RecipeError: it is not for Slurm, or the folder's name cannot stand in a script.
    """
    if not _PLAIN_PATH.fullmatch(folder):
        raise RecipeError(
            f"{folder!a} cannot stand in a batch script", hint="give an --out of letters, digits and . _ - + = @ , /"
        )
    if not isinstance(launch, SlurmLaunch):
        raise RecipeError(f"is to run on {launch.on}", where="launch.on", hint="--on slurm")
    kept = exit_code_path(RunDir(folder), f"{job.stage}-$SLURM_ARRAY_TASK_ID" if job.tasks else job.stage)
    return "\n".join(
        [
            "#!/bin/bash",
            f"# The stage `{job.stage}` of {folder}, which begins in the folder that this job is submitted from.",
            *(f"#SBATCH --{option}" for option in _options(job, launch, folder)),
            *(f"#SBATCH {option}" for option in launch.sbatch),
            "",
            *_surroundings(launch),
            "set -euo pipefail",
            f"rm -f {kept}",
            "",
            *_start(job, launch),
            "",
            *_end(job, launch, str(kept)),
            "",
        ]
    )


def _options(job: Job, launch: SlurmLaunch, folder: str) -> list[str]:
    nodes, processes = (launch.nodes, local_world_size_of(launch)) if job.on_all_ranks else (1, 1)
    tasks = processes if launch.launcher == "srun" else 1
    log = log_path(RunDir(folder), StageJob(job.stage, "%A-%a" if job.tasks else "%j", job.name))
    asked = {
        "job-name": job.name,
        "account": launch.account,
        "partition": launch.partition,
        "qos": launch.qos,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": _gpus(launch) if job.on_all_ranks else None,
        "cpus-per-task": launch.cpus_per_process and launch.cpus_per_process * (processes // tasks),
        "mem": _memory(launch.memory_gib_per_node),
        "time": launch.time_limit_minutes,
        "output": log,
        "array": job.tasks or None,
    }
    # torchrun passes on SIGTERM and dies of SIGUSR1. Slurm sends it to the processes, and not to this script.
    warning = "USR1" if launch.launcher == "srun" else "TERM"
    options = [f"{key}={value}" for key, value in asked.items() if value is not None]
    return [*options, "open-mode=append", "requeue", f"signal={warning}@{60 * launch.grace_minutes}"]


def _gpus(launch: SlurmLaunch) -> str | None:
    if launch.gpus_per_node is None:
        return None
    return f"{launch.gpu_type}:{launch.gpus_per_node}" if launch.gpu_type else str(launch.gpus_per_node)


def _memory(gib: int | Literal["all"] | None) -> str | None:
    if gib is None:
        return None
    return "0" if gib == "all" else f"{gib}G"  # 0 is sbatch's word for all


def _surroundings(launch: SlurmLaunch) -> list[str]:
    """Return what is set before anything starts."""
    lines = [f"module load {' '.join(launch.modules)}"] if launch.modules else []
    # A notebook or a shell that jobs are submitted from may itself be one process of many.
    lines.append("unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT")
    return [*lines, *(f"export {name}={shlex.quote(value)}" for name, value in launch.exports.items())]


def _start(job: Job, launch: SlurmLaunch) -> list[str]:
    """Return the lines that start the processes: one, or all of all machines."""
    many = job.on_all_ranks and world_size_of(launch) > 1
    each = "GPU" if launch.gpus_per_node == local_world_size_of(launch) else "task"
    python = f"/usr/bin/env {launch.python}" if launch.container else launch.python  # srun would look for it out here
    if not many or launch.launcher == "srun":
        return [
            *([f"# One process for each {each} of all machines."] if many else []),
            "code=0",
            _lines(_srun(launch, 1), _container(launch), f"{python} -m tunesmith {job.work} || code=$?"),
        ]
    if launch.launcher == "torchrun":
        module, options = "torch.distributed.run", [
            f"--nnodes={launch.nodes} --nproc-per-node={local_world_size_of(launch)}", "--rdzv-backend=c10d",
            '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"', '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        ]  # fmt: skip
    else:
        config = f"--config_file={launch.accelerate_config}" if launch.accelerate_config else "--multi_gpu"
        module, options = "accelerate.commands.launch", [
            f"{config} --num_machines={launch.nodes} --num_processes={world_size_of(launch)}",
            '--machine_rank="$SLURM_NODEID"', '--main_process_ip="$MASTER_ADDR" --main_process_port="$MASTER_PORT"',
        ]  # fmt: skip
    command = [f"{python} -m tunesmith.slurm.exit_code {module}", *options, f"-m tunesmith {job.work}"]
    return [
        f"# One {launch.launcher} on each machine, which starts a process for each {each} there.",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT=$(({FIRST_PORT} + (SLURM_JOB_ID + ${{SLURM_RESTART_COUNT:-0}}) % {PORT_COUNT}))",
        "code=0",
        _lines(
            _srun(launch, local_world_size_of(launch)), _container(launch), f"bash -c '{_lines(*command)}' || code=$?"
        ),
    ]


def _srun(launch: SlurmLaunch, processes: int) -> str:
    """Return the start of a step. When one process ends, the others have time to end with the same exit code.

    To kill them at once, which some clusters do unless told otherwise, would make 143 of any exit code: srun's own is
    the highest of all.
    """
    seconds = round(min(_LONGEST_WAIT, max(_SHORTEST_WAIT, 60 * launch.timeout_minutes)))
    # srun does not take the number of cores over from sbatch since Slurm 22.05.
    cores = f" --cpus-per-task={launch.cpus_per_process * processes}" if launch.cpus_per_process else ""
    return f"srun --mpi=none --kill-on-bad-exit=0 --wait={seconds} --export=ALL{cores}"


def _container(launch: SlurmLaunch) -> str:
    """Return the options of a container, in which the folder that the job is submitted from is the current one too."""
    if launch.container is None:
        return ""
    mounts = launch.container.mounts
    told = {
        "environment": launch.container.environment,
        "container-image": launch.container.image,
        "container-mounts": ",".join(('"$PWD:$PWD"', *mounts) if launch.container.image else mounts),
        "container-workdir": '"$PWD"',
    }
    return " ".join(f"--{key}={value}" for key, value in told.items() if value)


def _lines(*parts: str) -> str:
    """Return a command with each part on a line of its own."""
    return " \\\n    ".join(part for part in parts if part)


def _end(job: Job, launch: SlurmLaunch, kept: str) -> list[str]:
    """Return what follows the stage: another turn for what can go on, and the exit code for `tunesmith status`."""
    resumable, most = Interrupted.exit_code, launch.max_requeues
    # Of an array one task has the number of the whole, by which all its tasks would have another turn.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.tasks else "$SLURM_JOB_ID"
    return [
        f"# {resumable}: stopped with everything saved. Above 128: a process was killed. Unless it was cancelled, this",
        "# job waits for another turn, and goes on from the last checkpoint.",
        f"if ((code == {resumable} || code > 128)) && ((${{SLURM_RESTART_COUNT:-0}} < {most})) &&",
        f'    [[ $(scontrol show job --oneliner "{number}") != *JobState=CANCELLED* ]]; then',
        f'    echo "ended with $code; waits for another turn, of which there are {most} at most"',
        "    for pause in 5 30 120; do",
        f'        if scontrol requeue "{number}"; then sleep 60; fi # and Slurm ends this shell',
        '        sleep "$pause"',
        "    done",
        "fi",
        f'echo "$code" >{kept} || true',
        'exit "$code"',
    ]
