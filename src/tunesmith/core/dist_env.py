"""This process's rank, from the environment variables that torchrun or srun set.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so does `accelerate
launch`, which is built on it. srun sets variables of Slurm.

Uses only the standard library, because commands that do not import torch also need the rank.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.core.errors import RecipeError

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# SLURM_STEP_NUM_TASKS comes first: the shell of a job has SLURM_NTASKS and SLURM_PROCID too, but srun did not start it.
_SRUN_VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")
# The range of rendezvous ports, below the ephemeral ports of Linux, which begin at 32,768.
FIRST_PORT, PORT_COUNT = 15_000, 17_000


@dataclass(frozen=True, slots=True)
class RankInfo:
    """The rank of a process in its run and on its machine (`local_rank`), with the number of ranks in each.

    `init_method` is the rendezvous address in the form that `torch.distributed` expects.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    init_method: str = "env://"

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0


def rank_info() -> RankInfo:
    """Return the rank of this process; rank 0 of 1 if no launcher has set one.

    Raises:
        RecipeError: the variables are not numbers or contradict each other.
    """
    if os.environ.get("RANK") is not None and os.environ.get("WORLD_SIZE") is not None:
        return _checked(_from_torchrun, _TORCHRUN_VARIABLES)
    if os.environ.get(_SRUN_VARIABLES[0], "1") != "1":
        return _checked(_from_srun, _SRUN_VARIABLES)
    return RankInfo()


def _checked(read: Callable[[], RankInfo], names: Sequence[str]) -> RankInfo:
    """Return the rank that `read` finds in the variables `names`; raise RecipeError if it is impossible."""
    with contextlib.suppress(ValueError, IndexError):
        info = read()
        if 0 <= info.rank < info.world_size and 0 <= info.local_rank < info.local_world_size <= info.world_size:
            return info
    values = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    message = f"these environment variables name an impossible rank: {values}"
    raise RecipeError(message, hint="unset them, or start the processes with torchrun or srun", code="bad-rank")


def _from_torchrun() -> RankInfo:
    values = (os.environ.get(name) or default for name, default in zip(_TORCHRUN_VARIABLES, "0101", strict=True))
    rank, world_size, local_rank, local_world_size = map(int, values)
    return RankInfo(rank, world_size, local_rank, local_world_size)


def _from_srun() -> RankInfo:
    """Return the rank of a task in a Slurm job step, with the address of the step's first task."""
    world_size, rank, local_rank, node, per_node = (os.environ.get(name, "") for name in _SRUN_VARIABLES)
    tasks = list(_expand_counts(per_node))
    return RankInfo(int(rank), int(world_size), int(local_rank), tasks[int(node)], _rendezvous_address())


def _expand_counts(text: str) -> Iterator[int]:
    """Yield the numbers of a list in Slurm's short form: `2(x3),1` is 2, 2, 2, 1."""
    for part in text.split(","):
        number, _, times = part.partition("(x")
        yield from [int(number)] * int(times.rstrip(")") or 1)


def _rendezvous_address() -> str:
    """Return the address of a job step's first task; MASTER_ADDR and MASTER_PORT take precedence.

    The port is a hash of the job, the step and the restart count: all tasks compute the same one, and a restart gets
    another in case this one is in use.
    """
    host = os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    ids = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    digest = hashlib.sha256(" ".join(ids).encode()).digest()
    port = os.environ.get("MASTER_PORT") or FIRST_PORT + int.from_bytes(digest[:4], "big") % PORT_COUNT
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """Return the first host of a node list in Slurm's short form: `gpu[03-05,9],login1` begins with `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")
