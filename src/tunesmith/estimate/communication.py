"""Estimate the time that ranks spend on collectives in a step, from the stated bandwidths. Arithmetic, without torch.

The estimate counts bytes over the slowest link of a ring, the algorithm of collectives limited by bandwidth: an
all-reduce of n bytes over W ranks sends 2 (W - 1) / W n bytes over each link, and an all-gather or a reduce-scatter
half of that (Thakur, Rabenseifner & Gropp 2005, "Optimization of collective communication operations in MPICH"). It
leaves out latencies, other traffic on the network, and the imbalance of the ranks.
"""

from dataclasses import dataclass

from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.memory import layer_parameter_counts, sharded_parameter_bytes
from tunesmith.recipe.launch import Sharding, SlurmLaunch, local_world_size_of, world_size_of
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds of communication per step: `exposed` always adds to the step, `overlappable` can hide behind compute."""

    exposed: float
    overlappable: float

    def step_seconds(self, compute: float) -> tuple[float, float]:
        """Return the shortest and the longest time of a step with `compute` seconds: all hidden, and nothing hidden."""
        return max(compute, self.overlappable) + self.exposed, compute + self.overlappable + self.exposed


def estimate_communication(
    recipe: Recipe,
    shapes: Shapes,
    trained: int,
    sharding: Sharding,
    *,
    micro_batches: int,
    compute_bytes: int,
    on_gpu: bool,
) -> Communication | None:
    """Return the communication of a step; None if the recipe does not state the bandwidths.

    Args:
        trained: number of trained parameters.
        micro_batches: micro-batches of each rank in a step.
        compute_bytes: bytes per value in matrix products.
        on_gpu: GPUs compute while shards are sent; CPUs do one or the other.
    """
    launch = recipe.launch
    world, local_world = world_size_of(launch), local_world_size_of(launch)
    nodes = world // local_world
    if world == 1:
        return Communication(0, 0)
    # Bytes per second; 0 if the recipe does not state a bandwidth.
    intra_node = (launch.intra_node_gb_per_second or 0) * 1e9
    inter_node = (launch.inter_node_gb_per_second or 0) * 1e9 if isinstance(launch, SlurmLaunch) else 0.0
    slowest = min(bandwidth for bandwidth, ranks in ((inter_node, nodes), (intra_node, local_world)) if ranks > 1)
    if not slowest:
        return None
    if sharding == "none":
        return Communication(_all_reduce_share(world) * trained * _FP32 / slowest, 0)
    layers, _ = layer_parameter_counts(shapes)
    full = isinstance(recipe.tuning, FullTuning)
    replicated = trained - layers if full else trained  # trained parameters that are not sharded
    shards, bandwidth = (local_world, intra_node) if sharding == "node" else (world, slowest)
    gather_share = (shards - 1) / shards / (bandwidth or 1)
    # Layers are gathered for forward and again for backward. If they are trained, gradients are reduce-scattered.
    _, gathered_bytes = sharded_parameter_bytes(recipe, compute_bytes)
    overlappable = micro_batches * layers * gather_share * (2 * gathered_bytes + (_FP32 if full else 0))
    if full and sharding == "node" and nodes > 1:  # the shards of a node are all-reduced between nodes in parallel
        overlappable += micro_batches * _all_reduce_share(nodes) * layers * _FP32 / inter_node
    exposed = _all_reduce_share(world) * replicated * _FP32 / slowest
    if full and recipe.train.optimizer == "muon":  # the momentum of each matrix is gathered for the update
        exposed += layers * gather_share * _FP32
    return Communication(exposed, overlappable) if on_gpu else Communication(exposed + overlappable, 0)


def _all_reduce_share(world: int) -> float:
    """Return the bytes that an all-reduce of one byte sends over each link."""
    return 2 * (world - 1) / world
