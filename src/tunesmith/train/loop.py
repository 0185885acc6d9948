"""The training loop, a generator of StepReports. The caller logs, saves and stops.

for each step:  rows (seed, step) -> this rank's share -> micro-batches -> the objective's loss / its divisor
                -> backward -> sum over ranks -> finite? -> clip -> optimizer -> StepReport

In fp16, small gradients would become zero and large ones overflow. The loss is therefore multiplied by a power of two,
the loss scale, before backward, and the gradients are divided by it (Micikevicius et al. 2018, arXiv:1710.03740). If
they still overflow, the step is repeated with half the scale, so no step is skipped.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tunesmith.core import interrupt
from tunesmith.core.errors import NonFinite
from tunesmith.core.records import StepReport
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.sampler import rows_of_step
from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.distributed.fsdp import lockstep_micro_batches
from tunesmith.distributed.process_group import ProcessGroup, peer_failures_as_errors
from tunesmith.estimate.hardware import resident_gib
from tunesmith.estimate.memory import MemoryEstimate
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig
from tunesmith.model.memory import trim_heap
from tunesmith.objectives.base import Objective
from tunesmith.objectives.sft import SFT
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schedule import StepPlan, learning_rate_at
from tunesmith.recipe.schema import Recipe
from tunesmith.train.optim import clip_gradients

INITIAL_LOSS_SCALE = 2.0**16
_MAX_LOSS_SCALE = 2.0**24
STEPS_TO_DOUBLE_LOSS_SCALE = 500


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that the training loop needs.

    Attributes:
        loss_scale: the initial loss scale; 1 means no scaling.
        expected: the memory estimate, or None if the model's shapes are unknown.
        plain_path: the fast paths that are not used, and why.
        group: the ranks that train together.
        sharding: how the model is sharded over them.
    """

    recipe: Recipe
    plan: StepPlan
    compute: ComputeConfig
    model: Any
    tokens: TokenDataset
    pad_id: int
    oom_retry: OomRetry
    loss_scale: float = 1.0
    expected: MemoryEstimate | None = None
    plain_path: Mapping[str, str] = field(default_factory=dict)
    group: ProcessGroup = field(default_factory=ProcessGroup)
    sharding: Sharding = "none"
    objective: Objective = SFT


def train_steps(setup: Setup, optimizer: torch.optim.Optimizer, *, first_step: int) -> Iterator[StepReport]:
    """Yield a report after each optimizer step, from `first_step` (counted from 0) to the end of the plan.

    Raises:
        NonFinite: loss or gradient is NaN or infinite; the weights were not updated with it.
        Interrupted: a signal was received; the current step is discarded.
    """
    recipe, plan, scale, group = setup.recipe, setup.plan, setup.loss_scale, setup.group
    for step in range(first_step, plan.total_steps):
        if scale > 1 and step > 0 and step % STEPS_TO_DOUBLE_LOSS_SCALE == 0:
            scale = min(2 * scale, _MAX_LOSS_SCALE)
        setup.model.train()
        rows = rows_of_step(recipe, plan, step)
        local_rows, trained = group.local_rows(rows, setup.tokens.lengths), setup.tokens.trained_tokens(rows)
        divisor = setup.objective.divisor(setup.tokens, rows)
        while True:
            work = partial(accumulate_gradients, setup, step, local_rows, divisor, scale)
            with peer_failures_as_errors():
                local_loss = setup.oom_retry.run(work, setup.tokens, local_rows)
            (loss,) = group.sum(local_loss)
            group.raise_if_interrupted()
            if not math.isfinite(loss):
                raise _non_finite("loss", loss, step, rows)
            group.sum_gradients(setup.model)
            update_began = time.monotonic()
            norm = clip_gradients(setup.model, recipe.train.max_gradient_norm, group, loss_scale=scale)
            if math.isfinite(norm):
                break
            if scale <= 1:
                raise _non_finite("gradient norm", norm, step, rows)
            scale /= 2
        rate = learning_rate_at(recipe, plan, step)
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = int(setup.tokens.lengths[rows].sum())
        update_seconds = time.monotonic() - update_began if setup.compute.device.type == "cpu" else None
        # The optimizer state is allocated in the first step, between blocks that backward then frees. Later, steps of
        # many different lengths fragment the heap further.
        if step == first_step or _is_fragmented(setup):
            trim_heap()
        yield StepReport(step + 1, loss, rate, norm, tokens, trained, loss_scale=scale, update_seconds=update_seconds)


def _is_fragmented(setup: Setup) -> bool:
    """Return whether resident memory between steps exceeds the estimated peak without fragmentation."""
    expected, on_cpu = setup.expected, setup.compute.device.type == "cpu"
    return on_cpu and expected is not None and resident_gib() > expected.training - expected.fragmentation


def accumulate_gradients(
    setup: Setup, step: int, rows: list[int], divisor: float, scale: float, policy: MicroBatchPolicy
) -> float:
    """Accumulate the gradients of some rows of a step; return their part of the step's loss.

    Args:
        divisor: the number that the losses of the whole step are divided by.
    """
    # All randomness of a step (dropout) follows from these numbers, so a resume needs no generator state.
    seed = setup.recipe.seed * 1_000_003 + step + setup.group.rank_info.rank * 7_368_787
    torch.manual_seed(seed % 2**63)
    setup.model.zero_grad(set_to_none=True)  # an attempt that ran out of memory may have left gradients
    total = torch.zeros((), dtype=torch.float64, device=setup.compute.device)  # a float would wait for the GPU
    for (_, batch), counts in _micro_batches(setup, setup.tokens, rows, policy):
        interrupt.check()
        with setup.compute.autocast(setup.model.dtype):
            tokens = token_loss(setup.model, batch.to(setup.compute.device))
        loss = counts * setup.objective.loss(tokens) / divisor
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        if counts:
            total += loss.detach()
    return float(total)


def _micro_batches(
    setup: Setup, tokens: TokenDataset, rows: Sequence[int], policy: MicroBatchPolicy, *, interruptible: bool = False
) -> Iterator[tuple[tuple[Sequence[int], Batch], bool]]:
    """Yield ((rows, batch), whether it counts) for each forward pass. Idle passes for other ranks do not count.

    Args:
        interruptible: stop early if a signal is received.
    """

    def idle() -> tuple[Sequence[int], Batch]:
        return (), tokens.batch([int(tokens.lengths.argmin())], setup.pad_id)

    own = policy.batches(tokens, rows, setup.pad_id)
    own = interrupt.stop_when_requested(own) if interruptible else own
    return lockstep_micro_batches(setup.group, own, idle, sharded=setup.sharding != "none")


def measure(
    setup: Setup, tokens: TokenDataset, rows: Sequence[int], on_progress: Callable[[int], None]
) -> tuple[dict[str, float], int]:
    """Return the objective's measures over rows of a split, by name, and the number of their trained tokens.

    Args:
        rows: read in the order that needs the least padding.
        on_progress: called after each forward pass with the number of rows read so far.

    Raises:
        Interrupted: any rank received a signal; the measurement is discarded.
    """
    measures, local_rows = setup.objective.measures, setup.group.local_rows(rows, tokens.lengths)

    @torch.inference_mode()
    def local_sums(policy: MicroBatchPolicy) -> list[float]:
        """Return the number of trained tokens, then the two sums of each measure."""
        setup.model.eval()
        sums, done = [0.0] * (1 + 2 * len(measures)), 0
        for (batch_rows, batch), counts in _micro_batches(setup, tokens, local_rows, policy, interruptible=True):
            with setup.compute.autocast(setup.model.dtype):
                result = token_loss(setup.model, batch.to(setup.compute.device))
            if not counts:
                continue
            new = [result.nll.numel(), *(float(value) for measure in measures for value in measure.sums(result))]
            sums = [old + value for old, value in zip(sums, new, strict=True)]
            done += len(batch_rows)
            on_progress(done)
        return sums

    with peer_failures_as_errors():
        own = setup.oom_retry.run(local_sums, tokens, local_rows)
    count, *sums = setup.group.sum(*own)
    setup.group.raise_if_interrupted()
    pairs = zip(measures, sums[::2], sums[1::2], strict=True)
    return {measure.name: total / divisor for measure, total, divisor in pairs if divisor}, int(count)


def _non_finite(name: str, value: float, step: int, rows: list[int]) -> NonFinite:
    message = f"the {name} became {value}; the weights were not updated with it"
    hint = "lower train.learning_rate, or inspect these rows with `tunesmith show`; earlier checkpoints are kept"
    return NonFinite(message, where=f"step {step + 1}, rows {rows[:8]} of train", hint=hint)
