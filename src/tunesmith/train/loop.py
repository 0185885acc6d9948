"""The training loop: a generator of StepReports. It never logs, saves or stops by itself.

for each step:  rows (seed, step) -> this process's share -> micro-batches -> the objective's loss / its divisor
                -> backward -> sum over processes -> finite? -> clip -> optimizer -> StepReport

In fp16 small gradients would vanish and large ones overflow. So the loss is multiplied by a power of two before
backward and the gradients divided by it after (Micikevicius et al. 2018, arXiv:1710.03740). Where they overflow all the
same, the step is taken again with half of it: no step is left out.
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
from tunesmith.data.batch import Batch
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.sampler import batch_indices
from tunesmith.data.token_dataset import TokenDataset
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
_MOST_LOSS_SCALE = 2.0**24
_STEPS_TO_DOUBLE = 500


@dataclass(frozen=True, slots=True)
class Setup:
    """What the loop works with.

    `loss_scale` is what it begins with; 1 leaves losses as they are. `expected` is the memory that it should need.
    `plain_path` says what is not computed the fast way, and why. `group` are the processes that work together, and
    `sharding` what each of them keeps of the model. `objective` is what is learned.
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


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the objective measures of some rows, by name, and how many trained tokens they have."""

    values: dict[str, float]
    tokens: int


def train_steps(setup: Setup, optimizer: torch.optim.Optimizer, *, first_step: int) -> Iterator[StepReport]:
    """Yield a report after each optimizer step, from `first_step` (counted from 0) to the plan's end.

    Raises:
        NonFinite: loss or gradient is NaN or infinite; the optimizer has not moved.
        Interrupted: a signal came; the step in work is left out.
    """
    recipe, plan, scale, group = setup.recipe, setup.plan, setup.loss_scale, setup.group
    for step in range(first_step, plan.total_steps):
        if scale > 1 and step > 0 and step % _STEPS_TO_DOUBLE == 0:
            scale = min(2 * scale, _MOST_LOSS_SCALE)
        setup.model.train()
        rows = batch_indices(
            step,
            rows=len(setup.tokens),
            examples_per_step=recipe.train.examples_per_step,
            total_examples=plan.total_examples,
            seed=recipe.seed,
        )
        mine, trained = group.local_rows(rows, setup.tokens.lengths), setup.tokens.trained_tokens(rows)
        divisor = setup.objective.divisor(setup.tokens, rows)
        while True:
            work = partial(accumulate_gradients, setup, step, mine, divisor, scale)
            with peer_failures_as_errors():
                found = setup.oom_retry.run(work, setup.tokens, mine)
            (loss,) = group.sum(found)
            group.raise_if_interrupted()
            if not math.isfinite(loss):
                raise _non_finite("loss", loss, step, rows, setup)
            group.sum_gradients(setup.model)
            began = time.monotonic()
            norm = clip_gradients(setup.model, recipe.train.max_gradient_norm, group, loss_scale=scale)
            if math.isfinite(norm):
                break
            if scale <= 1:
                raise _non_finite("gradient norm", norm, step, rows, setup)
            scale /= 2
        rate = learning_rate_at(recipe, plan, step)
        for weights in optimizer.param_groups:
            weights["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = int(setup.tokens.lengths[rows].sum())
        moving = time.monotonic() - began if setup.compute.device.type == "cpu" else None
        # After the first step, because the optimizer's state now separates blocks of memory that the pass has freed;
        # later, because steps of many different lengths fragment the heap further.
        if step == first_step or _is_fragmented(setup):
            trim_heap()
        yield StepReport(step + 1, loss, rate, norm, tokens, trained, loss_scale=scale, update_seconds=moving)


def _is_fragmented(setup: Setup) -> bool:
    """Whether the process holds as much memory between steps as a peak without fragmentation would need."""
    expected = setup.expected
    if setup.compute.device.type != "cpu" or expected is None:
        return False
    return resident_gib() > expected.training - expected.fragmentation


def accumulate_gradients(
    setup: Setup, step: int, rows: list[int], divisor: float, scale: float, policy: MicroBatchPolicy
) -> float:
    """Add up what some rows give to the gradients and the loss of a step; return their part of the loss.

    Args:
        divisor: what the losses of the whole step are divided by.
    """
    # All randomness of a step (dropout) follows from these numbers, so resuming needs no generator's state.
    torch.manual_seed(_seed_of(setup.recipe.seed, step, setup.group.rank_info.rank))
    setup.model.zero_grad(set_to_none=True)  # a pass that ran out of memory may have left some
    total = 0.0
    for (_, batch), counts in _passes(setup, setup.tokens, rows, policy):
        interrupt.check()
        with setup.compute.autocast(setup.model.dtype):
            found = token_loss(setup.model, batch.to(setup.compute.device))
        loss = counts * setup.objective.loss(found) / divisor
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) if counts else 0.0
    return total


def _passes(
    setup: Setup, tokens: TokenDataset, rows: Sequence[int], policy: MicroBatchPolicy, *, whole: bool = True
) -> Iterator[tuple[tuple[Sequence[int], Batch], bool]]:
    """Yield the rows of each forward pass and what it reads, and whether it counts.

    Args:
        whole: go on to the end, though a signal comes.
    """

    def idle() -> tuple[Sequence[int], Batch]:
        return (), tokens.batch([int(tokens.lengths.argmin())], setup.pad_id)

    own = policy.batches(tokens, rows, setup.pad_id)
    own = own if whole else interrupt.stop_when_requested(own)
    return lockstep_micro_batches(setup.group, own, idle, sharded=setup.sharding != "none")


def measure(
    setup: Setup,
    tokens: TokenDataset,
    rows: Sequence[int] | None = None,
    *,
    seen: Callable[[int], None] = lambda _: None,
) -> Measurement:
    """Return what the objective measures of rows of a split, read in the order that needs the least padding.

    Args:
        rows: which of them; default all.
        seen: told after every pass how many rows have been read.

    Raises:
        Interrupted: a signal came to any process; what it has measured is left out.
    """
    mine = setup.group.local_rows(range(len(tokens)) if rows is None else rows, tokens.lengths)
    with peer_failures_as_errors():
        found = setup.oom_retry.run(partial(_measure, setup, tokens, mine, seen), tokens, mine)
    count, *sums = setup.group.sum(*found)
    setup.group.raise_if_interrupted()
    pairs = zip(setup.objective.measures, sums[::2], sums[1::2], strict=True)
    return Measurement({measure.name: total / by for measure, total, by in pairs if by}, int(count))


@torch.inference_mode()
def _measure(
    setup: Setup, tokens: TokenDataset, rows: Sequence[int], seen: Callable[[int], None], policy: MicroBatchPolicy
) -> list[float]:
    """Return how many trained tokens some rows have, and the two sums of each of the objective's measures."""
    setup.model.eval()
    measures, done = setup.objective.measures, 0
    sums = [0.0] * (1 + 2 * len(measures))
    for (group, batch), counts in _passes(setup, tokens, rows, policy, whole=False):
        with setup.compute.autocast(setup.model.dtype):
            result = token_loss(setup.model, batch.to(setup.compute.device))
        if not counts:
            continue
        new = [result.nll.numel(), *(float(value) for measure in measures for value in measure.sums(result))]
        sums = [old + value for old, value in zip(sums, new, strict=True)]
        done += len(group)
        seen(done)
    return sums


def _seed_of(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step + rank * 7_368_787) % 2**63


def _non_finite(what: str, value: float, step: int, rows: list[int], setup: Setup) -> NonFinite:
    return NonFinite(
        f"the {what} became {value}; the weights were not updated with it",
        where=f"step {step + 1}, rows {rows[:8]} of train",
        hint="lower train.learning_rate, or look at these rows with `tunesmith show`; earlier checkpoints are kept",
    )
