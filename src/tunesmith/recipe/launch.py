"""Where and with how many processes a run runs: the section `launch` of a recipe.

What is written here ends up in a script that a shell reads, so every value keeps to what can mean nothing else there.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import Section, checked_by

# Letters that neither a shell nor sbatch takes for anything but themselves.
_PLAIN = "a letter, a digit or one of _ . , : / @ % + = -"
_WORD = re.compile(r"[\w.,:/@%+=-]+", re.ASCII)
_OPTION = re.compile(r"--([a-z][a-z-]*)(=[\w.,:/@%+=*&|!()\[\]-]+)?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Written by us from the other settings; a second one would win or lose without a word.
_OURS = (
    "account", "array", "chdir", "clusters", "cpus-per-task", "dependency", "error", "export", "gpus-per-node",
    "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos",
    "requeue", "signal", "test-only", "time", "wait",
)  # fmt: skip


def _check_word(text: str) -> None:
    if not _WORD.fullmatch(text):
        raise RecipeError(f"may hold only {_PLAIN}, for it is written into a script (found {text!a})")
    if text.startswith("-"):  # it would be read as an option of its own
        raise RecipeError(f"must not begin with a dash (found {text!a})")


def _check_value(text: str) -> None:
    if not text.isprintable():
        raise RecipeError(f"must be one line of printable letters (found {text!a})")
    if "$" in text:  # who writes $SCRATCH/cache does not mean a folder of that name
        raise RecipeError(f"is taken as it stands, so `$` would stay one: write it out (found {text!a})")


def _check_variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise RecipeError(f"cannot name a variable of the environment (found {name!a})")


def _check_option(text: str) -> None:
    found = _OPTION.fullmatch(text)
    if found is None:
        raise RecipeError(f"must be written --name or --name=value, without spaces and quotes (found {text!a})")
    if found[1] in _OURS:
        raise RecipeError(f"--{found[1]} is written from the other settings of `launch`")


Word = Annotated[str, checked_by(_check_word)]
Value = Annotated[str, checked_by(_check_value)]
Variable = Annotated[str, checked_by(_check_variable)]
Option = Annotated[str, checked_by(_check_option)]


Sharding = Literal["auto", "none", "full", "node"]


class LaunchBase(Section):
    """What all ways to run share."""

    timeout_minutes: float = Field(
        30,
        gt=0,
        le=24 * 60,
        description="How long a rank waits for the others before the run ends because one hangs. Work of a single "
        "rank, such as writing a checkpoint or scoring answers, must take less.",
    )
    sharding: Sharding = Field(
        "auto",
        description="What each of many processes keeps of the model while it trains: `none`, all of it; `full`, its "
        "part of every layer; `node`, its part of what each machine keeps once. `auto` is `none` where that fits into "
        "memory, else `full`. Changes memory and speed, never the trajectory.",
    )
    offload: bool = Field(
        False,
        description="Keep what each process has of divided layers beside its GPU, in the machine's memory, with their "
        "gradients and optimizer's state: layers come to the GPU one by one, and weights are moved by the processor. "
        "Needs `sharding: full` or `node`. Takes longer, and changes no step.",
    )
    intra_node_gb_per_second: float | None = Field(
        None,
        gt=0,
        description="For `plan`: bandwidth between two processes of a machine, in 10^9 bytes per second. Without it, "
        "`plan` gives a lower bound of the time.",
    )


class LocalLaunch(LaunchBase):
    """In this process, or in those that you have started with torchrun, `accelerate launch` or srun."""

    on: Literal["local"]


class TorchrunLaunch(LaunchBase):
    """In so many processes on this machine, which torchrun starts: one for each GPU, as a rule."""

    on: Literal["torchrun"]
    processes: int = Field(ge=1, description="How many.")


class Container(Section):
    """In what the processes run, where the cluster has containers (srun's options of enroot and pyxis)."""

    environment: Word | None = Field(None, description="Name or file of an environment: `srun --environment`.")
    image: Word | None = Field(None, description="Image: `srun --container-image`.")
    mounts: tuple[Word, ...] = Field((), description="Folders as FROM:TO: `srun --container-mounts`.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.environment is None) == (self.image is None):
            raise ValueError("give `environment` or `image`")
        return self


class SlurmLaunch(LaunchBase):
    """As jobs of Slurm, one for each stage, each waiting for the one before."""

    on: Literal["slurm"]
    nodes: int = Field(1, ge=1, description="Machines that train and evaluate; other stages need one process of one.")
    gpus_per_node: int | None = Field(None, ge=1, description="GPUs of each machine, each with a process of its own.")
    gpu_type: Word | None = Field(
        None, description="Which, as the cluster calls them: `a100`, or `1g.10gb` for a part of one; default any."
    )
    gpu_memory_gib: int | None = Field(
        None, ge=1, description="Memory of each GPU, for `plan`; without it, whether training fits is left open."
    )
    processes_per_node: int | None = Field(
        None, ge=1, description="Processes on each machine, where that is not one for each GPU; default 1 without GPUs."
    )
    cpus_per_process: int | None = Field(None, ge=1, description="Cores of each process; default the cluster's.")
    memory_gib_per_node: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="Memory of each machine, or `all` that it has; default the cluster's."
    )
    inter_node_gb_per_second: float | None = Field(
        None, gt=0, description="For `plan`: bandwidth between two machines, in 10^9 bytes per second (1 GB = 8 Gbit)."
    )
    time_limit_minutes: int | None = Field(None, ge=1, description="Limit of each job; default the partition's.")
    grace_minutes: int = Field(
        5, ge=1, description="How long before the limit the processes are asked to write a checkpoint and requeue."
    )
    max_requeues: int = Field(20, ge=0, description="How often a job that was stopped or killed is put in line again.")
    account: Word | None = Field(None, description="Whose hours they are.")
    partition: Word | None = Field(None, description="Where; default the cluster's own.")
    qos: Word | None = Field(None, description="Quality of service.")
    launcher: Literal["srun", "torchrun", "accelerate"] = Field(
        "srun",
        description="The program that starts the processes of a machine; srun starts torchrun and accelerate too.",
    )
    accelerate_config: Word | None = Field(None, description="File of `accelerate launch --config_file`.")
    python: Word = Field("python", description="Python that has tunesmith, as the machines see it.")
    container: Container | None = Field(None, description="Leave out to run without one.")
    modules: tuple[Word, ...] = Field((), description="Loaded first, by `module load`.")
    exports: dict[Variable, Value] = Field({}, description="Variables of the environment, as they stand.")
    sbatch: tuple[Option, ...] = Field((), description="Further options of sbatch, such as `--constraint=a100`.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.time_limit_minutes is not None and self.grace_minutes >= self.time_limit_minutes:
            raise ValueError("`grace_minutes` must be less than `time_limit_minutes`, or nothing is trained")
        if self.gpus_per_node is None:
            for key in ("gpu_memory_gib", "gpu_type"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect without `gpus_per_node`")
        if self.accelerate_config is not None and self.launcher != "accelerate":
            raise ValueError("`accelerate_config` has no effect without `launcher: accelerate`")
        return self


Launch = Annotated[LocalLaunch | TorchrunLaunch | SlurmLaunch, Field(discriminator="on")]


def shard_count(sharding: Sharding, world: int, local_world: int) -> int:
    """Return over how many of so many processes, and of so many on each machine, layers are divided."""
    return {"full": world, "node": local_world}.get(sharding, 1)


def local_world_size_of(launch: LaunchBase) -> int:
    """Return how many processes each machine has."""
    if isinstance(launch, TorchrunLaunch):
        return launch.processes
    return (launch.processes_per_node or launch.gpus_per_node or 1) if isinstance(launch, SlurmLaunch) else 1


def world_size_of(launch: LaunchBase) -> int:
    """Return how many processes all machines have together."""
    return local_world_size_of(launch) * (launch.nodes if isinstance(launch, SlurmLaunch) else 1)
