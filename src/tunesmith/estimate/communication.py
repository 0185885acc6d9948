"""What processes send each other in a step, and how long that takes at stated bandwidths: arithmetic, no torch.

Counted are bytes over the slowest link of a ring, as collectives are made where bandwidth counts: adding up n bytes in
W processes sends 2 (W - 1) / W n over each link, putting together or spreading out n bytes half of it (Thakur,
Rabenseifner & Gropp 2005, "Optimization of collective communication operations in MPICH"). Left out are latencies, what
other jobs send, and how well the rows of a step can be shared out.
"""

from dataclasses import dataclass

from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.memory import layer_parameter_counts, sharded_parameter_bytes
from tunesmith.recipe.launch import LaunchBase, Sharding, SlurmLaunch, local_world_size_of, world_size_of
from tunesmith.recipe.schema import FullTuning, Recipe

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds of a step in which processes send: what they wait for, and what may go on while they compute."""

    waited: float
    beside: float

    def step_seconds(self, computing: float) -> tuple[float, float]:
        """Return how long a step takes that computes for so long: at best, and where nothing is hidden."""
        return max(computing, self.beside) + self.waited, computing + self.beside + self.waited


def estimate_communication(
    recipe: Recipe,
    shapes: Shapes,
    trained: int,
    sharding: Sharding,
    *,
    passes: int,
    compute_bytes: int,
    on_gpu: bool,
) -> Communication | None:
    """Return what a step's exchange takes; None where the recipe does not say how fast the links are.

    Args:
        trained: how many numbers are trained.
        passes: forward passes of each process in a step.
        compute_bytes: of a number in matrix products.
        on_gpu: layers go on computing while parts are sent; a processor does one or the other.
    """
    launch = recipe.launch
    world, local = world_size_of(launch), local_world_size_of(launch)
    within, between = _links(launch)
    machines = world // local
    if world == 1:
        return Communication(0, 0)
    if (machines > 1 and between is None) or (local > 1 and within is None):
        return None
    slowest = min(link for link in (between if machines > 1 else None, within if local > 1 else None) if link)
    if sharding == "none":
        return Communication(_added_up(world) * trained * _FP32 / slowest, 0)
    numbers, _ = layer_parameter_counts(shapes)
    full = isinstance(recipe.tuning, FullTuning)
    mine = trained - numbers if full else trained  # what is trained and whole
    parts, link = (local, within) if sharding == "node" else (world, slowest)
    one_way = (parts - 1) / parts / (link or 1)
    # Put together on the way there and back; gradients are spread out where the layers are trained.
    _, whole_bytes = sharded_parameter_bytes(recipe, compute_bytes)
    beside = passes * numbers * one_way * (2 * whole_bytes + (_FP32 if full else 0))
    if full and sharding == "node" and machines > 1:  # between machines all parts of one are added up side by side
        beside += passes * _added_up(machines) * numbers * _FP32 / (between or 1)
    waited = _added_up(world) * mine * _FP32 / slowest
    return Communication(waited, beside) if on_gpu else Communication(waited + beside, 0)


def _added_up(world: int) -> float:
    return 2 * (world - 1) / world


def _links(launch: LaunchBase) -> tuple[float | None, float | None]:
    """Return bytes a second between processes of a machine and between machines."""
    network = launch.inter_node_gb_per_second if isinstance(launch, SlurmLaunch) else None
    return tuple(gb * 1e9 if gb else None for gb in (launch.intra_node_gb_per_second, network))  # type: ignore[return-value]
