"""Which of the processes that do a run together this one is, by what who started it left in the environment.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so does `accelerate
launch`, which is built on it. srun sets names of its own. Standard library only: most verbs ask and need no torch.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.core.errors import RecipeError

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# SLURM_NTASKS and SLURM_PROCID are also there in the shell of a job, which srun has not started; the first is not.
_OF_SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")
# Where a process of a step waits for the others: below the ports that Linux gives to whoever asks for any (32,768 on).
FIRST_PORT, PORT_COUNT = 15_000, 17_000


@dataclass(frozen=True, slots=True)
class RankInfo:
    """The number of a process among all of a run's (`world_size`), and among those on its machine (`local_world_size`).

    `init_method` is where they find each other, as `torch.distributed` takes it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    init_method: str = "env://"

    @property
    def is_rank0(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def rank_info() -> RankInfo:
    """Return the place of this process; the only one of one, where nobody says anything.

    Raises:
        RecipeError: what the environment says cannot be.
    """
    if os.environ.get("RANK") is not None and os.environ.get("WORLD_SIZE") is not None:
        return _believed(_of_torchrun, _OF_TORCHRUN)
    if os.environ.get(_OF_SRUN[0], "1") != "1":
        return _believed(_of_srun, _OF_SRUN)
    return RankInfo()


def _believed(told: Callable[[], RankInfo], names: Sequence[str]) -> RankInfo:
    """Return the place that is told, unless it cannot be."""
    with contextlib.suppress(ValueError, IndexError):
        found = told()
        if 0 <= found.rank < found.world_size and 0 <= found.local_rank < found.local_world_size <= found.world_size:
            return found
    said = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    raise RecipeError(f"the environment says {said}", hint="unset them, or start the processes with torchrun or srun")


def _of_torchrun() -> RankInfo:
    said = (os.environ.get(name) or default for name, default in zip(_OF_TORCHRUN, "0101", strict=True))
    rank, world, local_rank, local_world = map(int, said)
    return RankInfo(rank, world, local_rank, local_world)


def _of_srun() -> RankInfo:
    """Return the place of a task of a job's step, and where its first task waits."""
    world, rank, local_rank, node, per_node = (os.environ.get(name, "") for name in _OF_SRUN)
    tasks = list(_repeated(per_node))
    return RankInfo(int(rank), int(world), int(local_rank), tasks[int(node)], _first_task())


def _repeated(text: str) -> Iterator[int]:
    """Yield the numbers of a list that Slurm shortens: `2(x3),1` is 2, 2, 2, 1."""
    for part in text.split(","):
        number, _, times = part.partition("(x")
        yield from [int(number)] * int(times.rstrip(")") or 1)


def _first_task() -> str:
    """Return where the first task of a step waits for the others, unless MASTER_ADDR and MASTER_PORT say.

    The port follows from the job, its step and how often it was started: all tasks come to the same, and the next start
    to another, if this one is taken.
    """
    host = os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    told = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    digest = hashlib.sha256(" ".join(told).encode()).digest()
    port = os.environ.get("MASTER_PORT") or FIRST_PORT + int.from_bytes(digest[:4], "big") % PORT_COUNT
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """Return the first machine of a list that Slurm shortens: `gpu[03-05,9],login1` begins with `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")
