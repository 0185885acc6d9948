"""Estimate the memory, communication and throughput of a run on its nodes, and on other numbers of them."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.data.fit import MemoryBudget, choose_sharding, estimate_micro_batches
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.sampler import estimate_rank_utilization
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.estimate.communication import Communication, estimate_communication
from tunesmith.estimate.hardware import (
    PRECISION_BYTES,
    Hardware,
    available_cores,
    available_memory_gib,
    choose_precision,
)
from tunesmith.estimate.memory import MemoryEstimate, layer_parameter_counts
from tunesmith.estimate.throughput import Speed
from tunesmith.recipe.launch import (
    Launch,
    Sharding,
    SlurmLaunch,
    TorchrunLaunch,
    local_world_size_of,
    shard_count,
    world_size_of,
)  # fmt: skip
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning, Quantization

# Estimates go up to this multiple of the recipe's nodes, to show whether more would help.
_MAX_MULTIPLE = 4


@dataclass(frozen=True, slots=True)
class EstimateInputs:
    """The inputs of the estimates besides the recipe.

    Attributes:
        shapes: the layer sizes of the base.
        rows: the training rows.
        hardware: this machine.
        speed: the speed of one process on this machine; None if it has not been measured.
        new_tokens: number of tokens that the recipe adds to the vocabulary.
    """

    shapes: Shapes
    rows: TokenDataset
    hardware: Hardware
    speed: Speed | None
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ClusterEstimate:
    """The needs and the throughput of a run on a number of nodes.

    Attributes:
        nodes: number of nodes.
        processes: number of processes on all nodes.
        sharding: how the model is sharded.
        micro_batches: how a process splits its rows into micro-batches.
        memory: memory that each process needs.
        memory_available: GiB for each process; None if unknown, because the nodes are elsewhere and the recipe does not
            state their memory.
        offloaded_available: GiB of CPU memory for each process with a GPU; None without a GPU, or if unknown.
        step_tokens: mean number of tokens per step.
        tokens_per_second: throughput of one process without communication; None if no speed was measured on hardware of
            this kind.
        communication: communication in a step; None if the recipe does not state the bandwidths.
        total_tokens_per_second: lowest and highest throughput of all processes together; None if `tokens_per_second` is
            None.
    """

    nodes: int
    processes: int
    sharding: Sharding
    micro_batches: MicroBatchPolicy
    memory: MemoryEstimate
    memory_available: float | None
    offloaded_available: float | None
    step_tokens: float
    tokens_per_second: float | None
    communication: Communication | None
    total_tokens_per_second: tuple[float, float] | None

    @property
    def fits(self) -> bool:
        """Whether the estimate fits in memory; true if the available memory is unknown."""
        needs = (self.memory.total, self.memory_available), (self.memory.offloaded, self.offloaded_available)
        return all(available is None or needed <= available for needed, available in needs)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON."""
        return {**asdict(self), "micro_batches": str(self.micro_batches)}

    def summary(self) -> dict[str, Any]:
        """Return the fields that compare numbers of nodes, as JSON."""
        return {
            "nodes": self.nodes, "processes": self.processes, "sharding": self.sharding,
            "memory": self.memory.total, "fits": self.fits, "tokens_per_second": self.total_tokens_per_second,
            "at_best": self.communication is None,
        }  # fmt: skip


def estimate_cluster(recipe: Recipe, inputs: EstimateInputs) -> ClusterEstimate:
    """Estimate a run on the nodes of its recipe.

    Raises:
        RecipeError: the recipe's sharding is impossible with this model.
    """
    shapes, rows, speed = inputs.shapes, inputs.rows, inputs.speed
    launch, hardware = recipe.launch, _hardware_of(recipe.launch, inputs.hardware)
    processes, local_world = world_size_of(launch), local_world_size_of(launch)
    compute_bytes = PRECISION_BYTES[_precision(recipe, hardware)]
    budget = MemoryBudget(compute_bytes, hardware.device == "cuda", hardware.memory_gib)
    sharding = choose_sharding(recipe, shapes, rows, budget, processes, new_tokens=inputs.new_tokens)
    shards = shard_count(sharding, processes, local_world)
    policy, memory = estimate_micro_batches(recipe, shapes, rows, budget, new_tokens=inputs.new_tokens, shards=shards)
    steps = plan_steps(recipe, len(rows))
    step_tokens = float(rows.lengths.sum()) * steps.epochs / steps.total_steps
    communication = estimate_communication(
        recipe, shapes, memory.trainable_parameters, sharding, compute_bytes=compute_bytes,
        micro_batches=_micro_batch_count(recipe, policy, step_tokens / processes), on_gpu=budget.on_gpu,
    )  # fmt: skip
    single = total = None
    if speed and hardware.device == inputs.hardware.device:
        speed = speed.with_cores(_cores_per_process(launch))
        single = step_tokens / speed.step_seconds(step_tokens)
        busiest = step_tokens / processes / estimate_rank_utilization(recipe, rows, processes)
        sharded = layer_parameter_counts(shapes)[0] if isinstance(recipe.tuning, FullTuning) else 0
        if recipe.train.optimizer == "muon":
            sharded = 0  # every process orthogonalizes all matrices
        updated_share = 1 - sharded * (1 - 1 / shards) / memory.trainable_parameters
        compute = speed.step_seconds(busiest, updated_share)
        shortest, longest = communication.step_seconds(compute) if communication else (compute, compute)
        total = step_tokens / longest, step_tokens / shortest
    return ClusterEstimate(
        nodes=processes // local_world, processes=processes, sharding=sharding, micro_batches=policy, memory=memory,
        memory_available=hardware.memory_gib if math.isfinite(hardware.memory_gib) else None,
        offloaded_available=_cpu_memory_gib(launch) if budget.on_gpu else None, step_tokens=step_tokens,
        tokens_per_second=single, communication=communication, total_tokens_per_second=total,
    )  # fmt: skip


def estimate_scaling(recipe: Recipe, inputs: EstimateInputs) -> Iterator[ClusterEstimate]:
    """Yield estimates for the recipe's number of nodes (of processes on one node) and for powers of two."""
    for scaled in _scaled_recipes(recipe, inputs.hardware):
        with contextlib.suppress(RecipeError):  # the sharding may be impossible on another number of nodes
            yield estimate_cluster(scaled, inputs)


def _hardware_of(launch: Launch, local: Hardware) -> Hardware:
    """Return the hardware of each process: of this machine, or of a Slurm cluster as the recipe states it."""
    if not isinstance(launch, SlurmLaunch):  # each process has a GPU, or they share the memory of this machine
        shared = replace(local, memory_gib=local.memory_gib / local_world_size_of(launch))
        return local if local.device == "cuda" else shared
    if launch.gpus_per_node is not None:
        return Hardware("cuda", has_bf16=True, memory_gib=launch.gpu_memory_gib or math.inf)
    return Hardware("cpu", local.has_bf16, _cpu_memory_gib(launch) or math.inf)


def _cpu_memory_gib(launch: Launch) -> float | None:
    """Return the CPU memory of each process; None on a Slurm cluster if the recipe does not state it."""
    if not isinstance(launch, SlurmLaunch):
        return available_memory_gib() / local_world_size_of(launch)
    node_gib = launch.memory_gib_per_node
    return node_gib / local_world_size_of(launch) if isinstance(node_gib, int) else None


def _scaled_recipes(recipe: Recipe, local: Hardware) -> Iterator[Recipe]:
    launch = recipe.launch
    if isinstance(launch, SlurmLaunch):
        key, size, max_size = "nodes", launch.nodes, _MAX_MULTIPLE * launch.nodes
    elif isinstance(launch, TorchrunLaunch):  # more processes than GPUs are impossible
        key, size = "processes", launch.processes
        max_size = max(size, available_cores() if local.device == "cpu" else 1)
    else:
        return
    for number in sorted({size, *(2**power for power in range(max_size.bit_length()))}):
        yield recipe.model_copy(update={"launch": launch.model_copy(update={key: number})})


def _cores_per_process(launch: Launch) -> float | None:
    """Return the number of cores of each process; None if the recipe does not state it."""
    if isinstance(launch, SlurmLaunch):
        return launch.cpus_per_process
    return available_cores() / local_world_size_of(launch)


def _micro_batch_count(recipe: Recipe, policy: MicroBatchPolicy, tokens: float) -> int:
    """Return the number of micro-batches of one process in a step."""
    if policy.rows is not None:
        count = recipe.train.examples_per_step / world_size_of(recipe.launch) / policy.rows
    else:
        count = tokens / policy.max_tokens
    return max(1, math.ceil(count))


def _precision(recipe: Recipe, hardware: Hardware) -> str:
    quantized = isinstance(recipe.tuning, Quantization)
    return choose_precision(recipe.model.precision, hardware.device, has_bf16=hardware.has_bf16, quantized=quantized)
