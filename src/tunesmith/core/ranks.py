"""Which of the processes that do a run together this one is, by what who started it left in the environment.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so does `accelerate
launch`, which is built on it. Standard library only: most verbs ask and need no torch.
"""

import os
from dataclasses import dataclass

from tunesmith.core.errors import RecipeError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Place:
    """The number of a process among all of a run's (`world`), and among those on its machine (`local_world`)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def place() -> Place:
    """Return the place of this process; the only one of one, where nobody says anything.

    Raises:
        RecipeError: what the environment says cannot be.
    """
    told = {name: os.environ.get(name) for name in _NAMES}
    if told["RANK"] is None or told["WORLD_SIZE"] is None:
        return Place()
    try:
        found = Place(*(int(value or default) for value, default in zip(told.values(), (0, 1, 0, 1), strict=True)))
    except ValueError:
        found = Place(-1)
    if not (0 <= found.rank < found.world and 0 <= found.local_rank < found.local_world <= found.world):
        said = ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)
        raise RecipeError(f"the environment says {said}", hint="unset them, or start the processes with torchrun")
    return found
