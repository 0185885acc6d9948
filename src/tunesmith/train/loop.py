"""The training loop: a generator of StepReports. It never logs, saves or stops by itself.

for each step:  rows (seed, step) -> this process's share -> micro-batches -> sum of loss / trained tokens of the step
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
from tunesmith.data.batches import Batch, TokenSet, rows_of_step
from tunesmith.data.microbatch import Division
from tunesmith.distributed.fsdp import passes
from tunesmith.distributed.process_group import Group, hearing_others
from tunesmith.estimate.hardware import resident_gib
from tunesmith.estimate.memory import Memory
from tunesmith.kernels.oom import Fitting
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import Machine
from tunesmith.model.memory import trim_heap
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schedule import Steps, learning_rate
from tunesmith.recipe.schema import Recipe
from tunesmith.train.optim import clip_gradients

FIRST_LOSS_SCALE = 2.0**16
_MOST_LOSS_SCALE = 2.0**24
_STEPS_TO_DOUBLE = 500


@dataclass(frozen=True, slots=True)
class Setup:
    """What the loop works with.

    `loss_scale` is what it begins with; 1 leaves losses as they are. `expected` is the memory that it should need.
    `plain_path` says what is not computed the fast way, and why. `group` are the processes that work together, and
    `sharding` what each of them keeps of the model.
    """

    recipe: Recipe
    plan: Steps
    machine: Machine
    model: Any
    tokens: TokenSet
    pad_id: int
    fitting: Fitting
    loss_scale: float = 1.0
    expected: Memory | None = None
    plain_path: Mapping[str, str] = field(default_factory=dict)
    group: Group = field(default_factory=Group)
    sharding: Sharding = "none"


@dataclass(frozen=True, slots=True)
class Measured:
    """Loss in nats per token and the fraction of tokens predicted right, over `tokens` trained tokens."""

    loss: float
    token_accuracy: float
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
        rows = rows_of_step(
            step,
            rows=len(setup.tokens),
            examples_per_step=recipe.train.examples_per_step,
            total_examples=plan.total_examples,
            seed=recipe.seed,
        )
        mine, trained = group.share(rows, setup.tokens.lengths), setup.tokens.trained_tokens(rows)
        while True:
            work = partial(_accumulate, setup, step, mine, trained, scale)
            with hearing_others():
                found = setup.fitting.run(work, setup.tokens, mine)
            (loss,) = group.sum(found)
            group.check()
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
        rate = learning_rate(recipe, plan, step)
        for weights in optimizer.param_groups:
            weights["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = int(setup.tokens.lengths[rows].sum())
        moving = time.monotonic() - began if setup.machine.device.type == "cpu" else None
        # After the first step, because the optimizer's state now separates blocks of memory that the pass has freed;
        # later, because steps of many different lengths fragment the heap further.
        if step == first_step or _is_fragmented(setup):
            trim_heap()
        yield StepReport(step + 1, loss, rate, norm, tokens, trained, loss_scale=scale, update_seconds=moving)


def _is_fragmented(setup: Setup) -> bool:
    """Whether the process holds as much memory between steps as a peak without fragmentation would need."""
    expected = setup.expected
    if setup.machine.device.type != "cpu" or expected is None:
        return False
    return resident_gib() > expected.training - expected.in_pieces


def _accumulate(setup: Setup, step: int, rows: list[int], trained: int, scale: float, division: Division) -> float:
    """Add up what some rows give to the gradients and the loss of a step; return their part of the loss.

    Args:
        trained: the trained tokens of the whole step, over which its loss is a mean.
    """
    # All randomness of a step (dropout) follows from these numbers, so resuming needs no generator's state.
    torch.manual_seed(_seed_of(setup.recipe.seed, step, setup.group.place.rank))
    setup.model.zero_grad(set_to_none=True)  # a pass that ran out of memory may have left some
    total = 0.0
    for (_, batch), counts in _passes(setup, setup.tokens, rows, division):
        interrupt.check()
        with setup.machine.autocast(setup.model.dtype):
            nll = token_loss(setup.model, batch.to(setup.machine.device)).nll
        loss = counts * nll.sum() / trained
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) if counts else 0.0
    return total


def _passes(
    setup: Setup, tokens: TokenSet, rows: Sequence[int], division: Division, *, whole: bool = True
) -> Iterator[tuple[tuple[Sequence[int], Batch], bool]]:
    """Yield the rows of each forward pass and what it reads, and whether it counts.

    Args:
        whole: go on to the end, though a signal comes.
    """

    def idle() -> tuple[Sequence[int], Batch]:
        return (), tokens.batch([int(tokens.lengths.argmin())], setup.pad_id)

    own = division.batches(tokens, rows, setup.pad_id)
    own = own if whole else interrupt.until_requested(own)
    return passes(setup.group, own, idle, sharded=setup.sharding != "none")


def measure(
    setup: Setup, tokens: TokenSet, rows: Sequence[int] | None = None, *, seen: Callable[[int], None] = lambda _: None
) -> Measured:
    """Return loss and token accuracy over rows of a split, in the order that needs the least padding.

    Args:
        rows: which of them; default all.
        seen: told after every pass how many rows have been read.

    Raises:
        Interrupted: a signal came to any process; what it has measured is left out.
    """
    mine = setup.group.share(range(len(tokens)) if rows is None else rows, tokens.lengths)
    with hearing_others():
        found = setup.fitting.run(partial(_measure, setup, tokens, mine, seen), tokens, mine)
    nll, correct, count = setup.group.sum(*found)
    setup.group.check()
    return Measured(nll / count, correct / count, int(count))


@torch.inference_mode()
def _measure(
    setup: Setup, tokens: TokenSet, rows: Sequence[int], seen: Callable[[int], None], division: Division
) -> tuple[float, float, float]:
    """Return the sum of the losses of some rows' trained tokens, how many are predicted right, and their number."""
    setup.model.eval()
    nll = correct = count = 0.0
    done = 0
    for (group, batch), counts in _passes(setup, tokens, rows, division, whole=False):
        with setup.machine.autocast(setup.model.dtype):
            result = token_loss(setup.model, batch.to(setup.machine.device))
        if not counts:
            continue
        nll += float(result.nll.double().sum())
        correct += float(result.correct.sum())
        count += result.nll.numel()
        done += len(group)
        seen(done)
    return nll, correct, count


def _seed_of(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step + rank * 7_368_787) % 2**63


def _non_finite(what: str, value: float, step: int, rows: list[int], setup: Setup) -> NonFinite:
    return NonFinite(
        f"the {what} became {value}; the weights were not updated with it",
        where=f"step {step + 1}, rows {rows[:8]} of train",
        hint="lower train.learning_rate, or look at these rows with `tunesmith show`; earlier checkpoints are kept",
    )
