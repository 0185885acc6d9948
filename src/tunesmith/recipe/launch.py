"""The section `launch`: how a run starts its processes, and how many.

Most values are written into a script for a shell, so only characters without a special meaning there are allowed.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import Section, checked_by, setting_error

# Characters that are literal to a shell and to sbatch.
_LITERAL = "letters, digits and _ . , : / @ % + = -"
_WORD = re.compile(r"[\w.,:/@%+=][\w.,:/@%+=-]*", re.ASCII)  # a dash first would begin an option
_OPTION = re.compile(r"--([a-z][a-z-]*)(=[\w.,:/@%+=*&|!()\[\]-]+)?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Options that the script sets from other keys; of two, sbatch would silently take one.
_OWN_OPTIONS = (
    "account", "array", "chdir", "clusters", "cpus-per-task", "dependency", "error", "export", "gpus-per-node",
    "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos",
    "requeue", "signal", "test-only", "time", "wait",
)  # fmt: skip


def _check_word(text: str) -> None:
    if not _WORD.fullmatch(text):
        message = f"may contain only {_LITERAL}, with no dash first, because a shell reads it (found {text!a})"
        raise RecipeError(message, code="unsafe-text")


def _check_value(text: str) -> None:
    if not text.isprintable():
        raise RecipeError(f"must be one line of printable characters (found {text!a})", code="unsafe-text")
    if "$" in text:  # whoever writes $SCRATCH/cache does not mean a folder of that name
        message = f"must not contain `$`, because no shell expands it: write the value out (found {text!a})"
        raise RecipeError(message, code="unsafe-text")


def _check_variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise RecipeError(f"cannot name an environment variable (found {name!a})", code="unsafe-text")


def _check_option(text: str) -> None:
    match = _OPTION.fullmatch(text)
    if match is None:
        message = f"must be --name or --name=value, without spaces and quotes (found {text!a})"
        raise RecipeError(message, code="unsafe-text")
    if match[1] in _OWN_OPTIONS:
        raise RecipeError(f"--{match[1]} is set by other keys of `launch`", code="contradiction")


Word = Annotated[str, checked_by(_check_word)]
Value = Annotated[str, checked_by(_check_value)]
Variable = Annotated[str, checked_by(_check_variable)]
Option = Annotated[str, checked_by(_check_option)]


Sharding = Literal["auto", "none", "full", "node"]


class LaunchBase(Section):
    """Keys that all kinds of launch share."""

    timeout_minutes: float = Field(
        30,
        gt=0,
        le=24 * 60,
        description="How long a rank waits for the others before it assumes that one of them hangs and ends the run. "
        "Work of a single rank, such as writing a checkpoint or scoring answers, must take less.",
    )
    sharding: Sharding = Field(
        "auto",
        description="How parameters, gradients and optimizer state are sharded in training: `none`, each rank holds "
        "all of them; `full`, divided among all ranks; `node`, divided among the ranks of a node, with a copy on every "
        "node. `auto` is `none` if that fits into memory, else `full`. Affects memory and speed, not results.",
    )
    offload: bool = Field(
        False,
        description="Offload sharded parameters, gradients and optimizer state to CPU memory, where the optimizer then "
        "runs. Needs `sharding: full` or `node`. Slower; does not affect results.",
    )
    intra_node_gb_per_second: float | None = Field(
        None, gt=0, description="For `plan`: 10^9 bytes/s within a node; if unstated, the time is only a lower bound."
    )


class LocalLaunch(LaunchBase):
    """In this process, or in the processes that you started with torchrun, `accelerate launch` or srun."""

    on: Literal["local"]


class TorchrunLaunch(LaunchBase):
    """In several processes on this machine, started by torchrun; usually one per GPU."""

    on: Literal["torchrun"]
    processes: int = Field(ge=1, description="Number of processes.")


class Container(Section):
    """Container to run the processes in, if the cluster's srun supports containers (enroot and pyxis)."""

    environment: Word | None = Field(None, description="Name or file of an environment: `srun --environment`.")
    image: Word | None = Field(None, description="Image: `srun --container-image`.")
    mounts: tuple[Word, ...] = Field((), description="Folders, as FROM:TO: `srun --container-mounts`.")

    @model_validator(mode="after")
    def _check_image(self) -> Self:
        if (self.environment is None) == (self.image is None):
            raise setting_error("contradiction", "give either `environment` or `image`")
        return self


class SlurmLaunch(LaunchBase):
    """As Slurm jobs: one per stage, each waiting for the previous one."""

    on: Literal["slurm"]
    nodes: int = Field(1, ge=1, description="Nodes for training and evaluation. Other stages use one process.")
    gpus_per_node: int | None = Field(None, ge=1, description="GPUs per node, with one process for each.")
    gpu_type: Word | None = Field(None, description="GPU type as the cluster names it, such as `a100`; default any.")
    gpu_memory_gib: int | None = Field(None, ge=1, description="Memory per GPU, for `plan` to see if training fits.")
    processes_per_node: int | None = Field(None, ge=1, description="Processes per node; default one per GPU, or 1.")
    cpus_per_process: int | None = Field(None, ge=1, description="CPU cores per process; default the cluster's.")
    memory_gib_per_node: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="Memory per node, or `all` of it; default the cluster's."
    )
    inter_node_gb_per_second: float | None = Field(None, gt=0, description="For `plan`: 10^9 bytes/s between nodes.")
    time_limit_minutes: int | None = Field(None, ge=1, description="Time limit of each job; default the partition's.")
    grace_minutes: int = Field(5, ge=1, description="Time before the limit at which a job saves and is requeued.")
    max_requeues: int = Field(20, ge=0, description="Maximum number of times that a stopped or killed job is requeued.")
    account: Word | None = Field(None, description="Account that is charged.")
    partition: Word | None = Field(None, description="Partition; default the cluster's.")
    qos: Word | None = Field(None, description="Quality of service.")
    launcher: Literal["srun", "torchrun", "accelerate"] = Field(
        "srun", description="Program that starts a node's processes. srun starts torchrun or accelerate once per node."
    )
    accelerate_config: Word | None = Field(None, description="File for `accelerate launch --config_file`.")
    python: Word = Field("python", description="Python interpreter with tunesmith, as a path on the nodes.")
    container: Container | None = Field(None, description="Container to run in; default none.")
    modules: tuple[Word, ...] = Field((), description="Environment modules to load first (`module load`).")
    exports: dict[Variable, Value] = Field({}, description="Environment variables, with literal values.")
    sbatch: tuple[Option, ...] = Field((), description="Further options of sbatch, such as `--constraint=a100`.")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.time_limit_minutes is not None and self.grace_minutes >= self.time_limit_minutes:
            message = "`grace_minutes` must be less than `time_limit_minutes`, or there is no time to train"
            raise setting_error("contradiction", message)
        if self.gpus_per_node is None:
            for key in ("gpu_memory_gib", "gpu_type"):
                if getattr(self, key) is not None:
                    raise setting_error("no-effect", f"`{key}` has no effect without `gpus_per_node`")
        if self.accelerate_config is not None and self.launcher != "accelerate":
            raise setting_error("no-effect", "`accelerate_config` has no effect without `launcher: accelerate`")
        return self


Launch = Annotated[LocalLaunch | TorchrunLaunch | SlurmLaunch, Field(discriminator="on")]


def shard_count(sharding: Sharding, world_size: int, local_world_size: int) -> int:
    """Return the number of ranks among which each layer is divided."""
    return {"full": world_size, "node": local_world_size}.get(sharding, 1)


def local_world_size_of(launch: LaunchBase) -> int:
    """Return the number of processes per node."""
    if isinstance(launch, TorchrunLaunch):
        return launch.processes
    return (launch.processes_per_node or launch.gpus_per_node or 1) if isinstance(launch, SlurmLaunch) else 1


def world_size_of(launch: LaunchBase) -> int:
    """Return the number of processes on all nodes together."""
    return local_world_size_of(launch) * (launch.nodes if isinstance(launch, SlurmLaunch) else 1)
