"""Write the batch script of a stage: plain bash that can also be read, kept and submitted by hand.

`recipe/launch.py` checks the values of a recipe when it is read, so that none can break out of its place in the script.
"""

import re
import shlex
from dataclasses import dataclass

from tunesmith.core.dist_env import FIRST_PORT, PORT_COUNT
from tunesmith.core.errors import Interrupted, RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.launch import Launch, SlurmLaunch, local_world_size_of, world_size_of
from tunesmith.slurm.jobs import StageJob, exit_code_path, log_path

# Limits, in seconds, of the time that the other tasks of a step have to end after one has ended.
_MIN_WAIT, _MAX_WAIT = 60, 300
# Paths that sbatch takes literally as the name of a log: no blank, no quote, and no % of its own patterns.
_PLAIN_PATH = re.compile(r"(?!-)[\w./+=@,-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Job:
    """A stage as a job.

    Attributes:
        recipe: the name of the recipe.
        command: the subcommand of tunesmith that runs the stage, with its arguments.
        on_all_ranks: all processes of the run work at the stage; otherwise one does.
        array: the task numbers of a job array, such as "1,2,5"; each task has its own in $SLURM_ARRAY_TASK_ID.
    """

    recipe: str
    stage: str
    command: str
    on_all_ranks: bool
    array: str = ""

    @property
    def name(self) -> str:
        """The job's name in the queue."""
        return f"{self.recipe}-{self.stage}"


def batch_script(job: Job, launch: Launch, folder: str) -> str:
    """Return the batch script of a job.

    Args:
        launch: the recipe's section.
        folder: the run's folder, relative to the folder that jobs are submitted from.

    Raises:
        RecipeError: `launch` does not ask for Slurm, or the folder's path is not allowed in a script.
    """
    if not _PLAIN_PATH.fullmatch(folder):
        message = f"the path {folder!a} has characters that are not allowed in a batch script"
        hint = "pass an --out with only letters, digits and . _ - + = @ , /"
        raise RecipeError(message, hint=hint, code="script-path")
    if not isinstance(launch, SlurmLaunch):
        raise RecipeError(f"is {launch.on}, not slurm", where="launch.on", hint="--on slurm", code="not-for-slurm")
    code_file = exit_code_path(RunDir(folder), f"{job.stage}-$SLURM_ARRAY_TASK_ID" if job.array else job.stage)
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Stage `{job.stage}` of {folder}, relative to the folder that this job is submitted from.",
            *(f"#SBATCH --{option}" for option in _options(job, launch, folder)),
            *(f"#SBATCH {option}" for option in launch.sbatch),
            "",
            *_environment_lines(launch),
            "set -euo pipefail",
            f"rm -f {code_file}",
            "",
            *_launch_lines(job, launch),
            "",
            *_requeue_lines(job, launch, str(code_file)),
            "",
        ]
    )


def _options(job: Job, launch: SlurmLaunch, folder: str) -> list[str]:
    """Return the options of sbatch, without their dashes."""
    nodes, processes = (launch.nodes, local_world_size_of(launch)) if job.on_all_ranks else (1, 1)
    memory = launch.memory_gib_per_node
    tasks = processes if launch.launcher == "srun" else 1
    log = log_path(RunDir(folder), StageJob(job.stage, "%A-%a" if job.array else "%j", job.name))
    values = {
        "job-name": job.name,
        "account": launch.account,
        "partition": launch.partition,
        "qos": launch.qos,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": _gpus(launch) if job.on_all_ranks else None,
        "cpus-per-task": launch.cpus_per_process and launch.cpus_per_process * (processes // tasks),
        "mem": "0" if memory == "all" else memory and f"{memory}G",  # sbatch writes 0 for all memory of a node
        "time": launch.time_limit_minutes,
        "output": log,
        "array": job.array or None,
    }
    # Slurm sends the signal to the processes of a step and not to this script. torchrun forwards SIGTERM to its
    # workers, but dies of SIGUSR1.
    signal = "USR1" if launch.launcher == "srun" else "TERM"
    options = [f"{key}={value}" for key, value in values.items() if value is not None]
    return [*options, "open-mode=append", "requeue", f"signal={signal}@{60 * launch.grace_minutes}"]


def _gpus(launch: SlurmLaunch) -> str | None:
    if launch.gpus_per_node is None:
        return None
    return f"{launch.gpu_type}:{launch.gpus_per_node}" if launch.gpu_type else str(launch.gpus_per_node)


def _environment_lines(launch: SlurmLaunch) -> list[str]:
    """Return the lines that load modules and set variables."""
    lines = [f"module load {' '.join(launch.modules)}"] if launch.modules else []
    # The shell that a job is submitted from may itself be a rank of another process group.
    lines.append("unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT")
    return [*lines, *(f"export {name}={shlex.quote(value)}" for name, value in launch.exports.items())]


def _launch_lines(job: Job, launch: SlurmLaunch) -> list[str]:
    """Return the lines that start one process, or the ranks on all nodes."""
    is_parallel = job.on_all_ranks and world_size_of(launch) > 1
    unit = "GPU" if launch.gpus_per_node == local_world_size_of(launch) else "task"
    # In a container, srun would look for `python` outside of it.
    python = f"/usr/bin/env {launch.python}" if launch.container else launch.python
    if not is_parallel or launch.launcher == "srun":
        comment = [f"# One process per {unit}, on all nodes."] if is_parallel else []
        return [*comment, *_srun_lines(launch, 1, f"{python} -m tunesmith {job.command}")]
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
    command = [f"{python} -m tunesmith.slurm.exit_code {module}", *options, f"-m tunesmith {job.command}"]
    return [
        f"# One {launch.launcher} per node, which starts one process per {unit}.",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT=$(({FIRST_PORT} + (SLURM_JOB_ID + ${{SLURM_RESTART_COUNT:-0}}) % {PORT_COUNT}))",
        *_srun_lines(launch, local_world_size_of(launch), f"bash -c '{_continued(*command)}'"),
    ]


def _srun_lines(launch: SlurmLaunch, processes: int, command: str) -> list[str]:
    """Return the lines of a step in which the other tasks have time to exit when one has failed.

    With --kill-on-bad-exit, the default of some clusters, srun would kill them at once, and their 143 would hide the
    exit code of the failed task: srun exits with the highest of all.
    """
    seconds = round(min(_MAX_WAIT, max(_MIN_WAIT, 60 * launch.timeout_minutes)))
    # Since Slurm 22.05 srun no longer inherits the number of cores from sbatch.
    cores = f" --cpus-per-task={launch.cpus_per_process * processes}" if launch.cpus_per_process else ""
    srun = f"srun --mpi=none --kill-on-bad-exit=0 --wait={seconds} --export=ALL{cores}"
    return ["code=0", _continued(srun, _container(launch), f"{command} || code=$?")]


def _container(launch: SlurmLaunch) -> str:
    """Return srun's options for a container, whose working folder is the one that the job is submitted from."""
    if launch.container is None:
        return ""
    mounts = launch.container.mounts
    options = {
        "environment": launch.container.environment,
        "container-image": launch.container.image,
        "container-mounts": ",".join(('"$PWD:$PWD"', *mounts) if launch.container.image else mounts),
        "container-workdir": '"$PWD"',
    }
    return " ".join(f"--{key}={value}" for key, value in options.items() if value)


def _continued(*parts: str) -> str:
    """Join the parts of a command, one per line."""
    return " \\\n    ".join(part for part in parts if part)


def _requeue_lines(job: Job, launch: SlurmLaunch, code_file: str) -> list[str]:
    """Return the lines that requeue a job that can be resumed, and write its exit code for `tunesmith status`."""
    resumable, max_requeues = Interrupted.exit_code, launch.max_requeues
    # One task of an array has the number of the whole array as its $SLURM_JOB_ID, which would requeue all tasks.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.array else "$SLURM_JOB_ID"
    return [
        f"# {resumable}: stopped after a checkpoint. Above 128: a process was killed. Requeue the job, unless it was",
        "# cancelled; it resumes from the last checkpoint.",
        f"if ((code == {resumable} || code > 128)) && ((${{SLURM_RESTART_COUNT:-0}} < {max_requeues})) &&",
        f'    [[ $(scontrol show job --oneliner "{number}") != *JobState=CANCELLED* ]]; then',
        f'    echo "ended with $code; requeuing, at most {max_requeues} times"',
        "    for pause in 5 30 120; do",
        f'        if scontrol requeue "{number}"; then sleep 60; fi # and Slurm ends this shell',
        '        sleep "$pause"',
        "    done",
        "fi",
        f'echo "$code" >{code_file} || true',
        'exit "$code"',
    ]
