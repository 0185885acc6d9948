"""What so many processes would keep, need and send, and how fast they would be together: a plan's part of a cluster."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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

# How many times the machines that are asked for are looked at, to tell whether more would help.
_TIMES_MORE = 4


@dataclass(frozen=True, slots=True)
class ClusterEstimate:
    """What is foreseen for so many processes.

    Attributes:
        machines: how many.
        processes: of all of them.
        sharding: what each keeps of the model.
        division: how each cuts its rows into passes.
        memory: what each needs.
        memory_available: the GiB that each has; None where nobody said.
        offloaded_available: the same of its machine's memory, where it has a GPU.
        step_tokens: of a step, on average.
        tokens_per_second: of one process that computes alone; None where it is not known.
        communication: what they send each other in a step; None where the recipe does not say how fast the links are.
        together: tokens a second of all, at worst and at best.
    """

    machines: int
    processes: int
    sharding: Sharding
    division: MicroBatchPolicy
    memory: MemoryEstimate
    memory_available: float | None
    offloaded_available: float | None
    step_tokens: float
    tokens_per_second: float | None
    communication: Communication | None
    together: tuple[float, float] | None

    @property
    def fits(self) -> bool:
        """Whether each has the memory that it needs, as far as that is known."""
        needed = (self.memory.total, self.memory_available), (self.memory.offloaded, self.offloaded_available)
        return all(available is None or need <= available for need, available in needed)

    def to_json(self) -> dict[str, Any]:
        """Return what tells sizes apart."""
        return {
            "machines": self.machines, "processes": self.processes, "sharding": self.sharding,
            "memory": self.memory.total, "fits": self.fits, "tokens_per_second": self.together,
            "at_best": self.communication is None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class EstimateInputs:
    """What a forecast is made of: a model's shapes, the training rows, this machine, and how fast one process was here.

    `new_tokens` are added to those that the model knows.
    """

    shapes: Shapes
    rows: TokenDataset
    here: Hardware
    speed: Speed | None
    new_tokens: int = 0


def estimate_cluster(recipe: Recipe, known: EstimateInputs) -> ClusterEstimate:
    """Return what is foreseen for a recipe where it says that it will run.

    Raises:
        RecipeError: what it asks for cannot be done with this model.
    """
    shapes, rows, speed = known.shapes, known.rows, known.speed
    launch, there = recipe.launch, _hardware_of(recipe.launch, known.here)
    processes = world_size_of(launch)
    number = PRECISION_BYTES[_precision(recipe, there)]
    room = MemoryBudget(number, there.device == "cuda", there.memory_gib)
    sharding = choose_sharding(recipe, shapes, rows, room, processes, new_tokens=known.new_tokens)
    parts = shard_count(sharding, processes, local_world_size_of(launch))
    division, memory = estimate_micro_batches(recipe, shapes, rows, room, new_tokens=known.new_tokens, shards=parts)
    steps = plan_steps(recipe, len(rows))
    per_step = float(rows.lengths.sum()) * steps.epochs / steps.total_steps
    sent = estimate_communication(
        recipe, shapes, memory.trainable_parameters, sharding, compute_bytes=number,
        micro_batches=_passes(recipe, division, per_step / processes), on_gpu=room.on_gpu,
    )  # fmt: skip
    alone = together = None
    if speed and there.device == known.here.device:
        one = speed.with_cores(_cores_of_each(launch))
        alone = per_step / one.step_seconds(per_step)
        most = per_step / processes / estimate_rank_utilization(recipe, rows, processes)
        computing = one.step_seconds(most, _moved(recipe, shapes, memory, parts))
        low, high = sent.step_seconds(computing) if sent else (computing, computing)
        together = per_step / high, per_step / low
    available = there.memory_gib if math.isfinite(there.memory_gib) else None
    offloaded = _machine_gib(launch) if room.on_gpu else None
    machines = processes // local_world_size_of(launch)
    return ClusterEstimate(
        machines, processes, sharding, division, memory, available, offloaded, per_step, alone, sent, together
    )  # fmt: skip


def scaling(recipe: Recipe, known: EstimateInputs) -> Iterator[ClusterEstimate]:
    """Yield what is foreseen for 1, 2, 4 and so on of the machines, or processes, of which a recipe asks for some."""
    for other in _other_sizes(recipe, known.here):
        with contextlib.suppress(RecipeError):  # of sizes that were not asked for
            yield estimate_cluster(other, known)


def _hardware_of(launch: Launch, here: Hardware) -> Hardware:
    """Return what each process will have: this machine's, or what the recipe says of machines that are elsewhere."""
    if not isinstance(launch, SlurmLaunch):  # processes on one GPU each, or on one processor
        return (
            here if here.device == "cuda" else replace(here, memory_gib=here.memory_gib / local_world_size_of(launch))
        )
    if launch.gpus_per_node is not None:
        return Hardware("cuda", has_bf16=True, memory_gib=launch.gpu_memory_gib or math.inf)
    return Hardware("cpu", here.has_bf16, _machine_gib(launch) or math.inf)


def _machine_gib(launch: Launch) -> float | None:
    """Return what each process has of its machine's memory; None where it is elsewhere and the recipe does not say."""
    if not isinstance(launch, SlurmLaunch):
        return available_memory_gib() / local_world_size_of(launch)
    given = launch.memory_gib_per_node
    return given / local_world_size_of(launch) if isinstance(given, int) else None


def _other_sizes(recipe: Recipe, here: Hardware) -> Iterator[Recipe]:
    launch = recipe.launch
    if isinstance(launch, SlurmLaunch):
        key, asked, most = "nodes", launch.nodes, _TIMES_MORE * launch.nodes
    elif isinstance(launch, TorchrunLaunch):  # of GPUs there may be no more
        key, asked = "processes", launch.processes
        most = max(asked, available_cores() if here.device == "cpu" else 1)
    else:
        return
    for size in sorted({asked, *(2**power for power in range(most.bit_length()))}):
        yield recipe.model_copy(update={"launch": launch.model_copy(update={key: size})})


def _cores_of_each(launch: Launch) -> float | None:
    """Return how many cores each process has; None where nobody says."""
    return (
        launch.cpus_per_process if isinstance(launch, SlurmLaunch) else available_cores() / local_world_size_of(launch)
    )


def _moved(recipe: Recipe, shapes: Shapes, memory: MemoryEstimate, parts: int) -> float:
    """Return how much of what is trained each process moves: all that it has."""
    if not isinstance(recipe.tuning, FullTuning):
        return 1.0
    divided, _ = layer_parameter_counts(shapes)
    return 1 - divided * (1 - 1 / parts) / memory.trainable_parameters


def _passes(recipe: Recipe, division: MicroBatchPolicy, tokens: float) -> int:
    """Return how many passes a process makes of its tokens of a step."""
    if division.rows is not None:
        passes = recipe.train.examples_per_step / world_size_of(recipe.launch) / division.rows
    else:
        passes = tokens / division.max_tokens
    return max(1, math.ceil(passes))


def _precision(recipe: Recipe, there: Hardware) -> str:
    quantized = isinstance(recipe.tuning, Quantization)
    return choose_precision(recipe.model.precision, there.device, has_bf16=there.has_bf16, quantized=quantized)
