"""The numbers of a run, computed from its recipe and the number of training rows: steps, intervals, learning rates."""

import math
from dataclasses import dataclass

from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.training import decayed_fraction

# Keys of `train` that affect memory, speed and the files that are kept, but not the result.
RESULT_NEUTRAL_KEYS = ("micro_batch", "micro_batch_tokens", "packing", "activation_checkpointing", "keep_checkpoints")
# Keys of `evaluate` that decide how answers are decoded, in validation as well.
DECODING_KEYS = ("max_new_tokens", "beams", "sampling", "stop")
# Default number of padded tokens of a micro-batch on a GPU: enough to keep its matrix units busy.
_TOKENS_ON_GPU = 16384
# On a CPU, in bytes per hidden dimension: 1,024 tokens in fp32, because more are no faster and take more memory, and
# 2,048 in bf16, whose matrix units need more at once.
_BYTES_ON_CPU = 4096


def default_micro_batch_tokens(compute_bytes: int, *, on_gpu: bool) -> int:
    """Return the maximum number of padded tokens of a forward pass.

    Args:
        compute_bytes: bytes per number of the compute precision.
    """
    return _TOKENS_ON_GPU if on_gpu else _BYTES_ON_CPU // compute_bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How many rows and optimizer steps a run has. Intervals are in steps.

    Attributes:
        decay_steps: the last steps, in which `wsd` lowers the learning rate.
        stop_after: the number of validations without an improvement after which training stops early; None if never.
    """

    train_rows: int
    total_examples: int
    total_steps: int
    warmup_steps: int
    valid_every_steps: int
    save_every_steps: int
    decay_steps: int = 0
    stop_after: int | None = None

    @property
    def epochs(self) -> float:
        """How often a training row is used on average."""
        return self.total_examples / self.train_rows

    @property
    def validations(self) -> int:
        """Number of validations: before the first step, at every interval, and after the last step."""
        return 1 + math.ceil(self.total_steps / self.valid_every_steps)

    @property
    def can_stop_early(self) -> bool:
        """Whether enough validations precede the last step: one improvement, then `stop_after` without."""
        return self.stop_after is not None and self.validations - 2 > self.stop_after


def plan_steps(recipe: Recipe, train_rows: int) -> StepPlan:
    """Compute the steps of a run over `train_rows` rows.

    `epochs` and `max_steps` are both limits, and the lower one applies. The last step can have fewer rows.
    """
    train = recipe.train
    total_examples = max(1, round(train.epochs * train_rows))
    if train.max_steps is not None:
        total_examples = min(total_examples, train.max_steps * train.examples_per_step)
    total_steps = math.ceil(total_examples / train.examples_per_step)
    valid_every_steps = train.valid_every_steps or max(1, math.ceil(total_steps / 10))
    return StepPlan(
        train_rows=train_rows,
        total_examples=total_examples,
        total_steps=total_steps,
        warmup_steps=round(train.warmup_fraction * total_steps),
        valid_every_steps=valid_every_steps,
        save_every_steps=train.save_every_steps or valid_every_steps,
        decay_steps=round(decayed_fraction(train) * total_steps),
        stop_after=train.stop_early.after_validations if train.stop_early else None,
    )


def learning_rate_at(recipe: Recipe, plan: StepPlan, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warmup, then the recipe's schedule down to 0.

    `wsd` is constant until the last `decay_steps`, in which it falls as 1 - sqrt(progress). Of the forms compared by
    Hägele et al. 2024 (arXiv:2405.18392), this one ends with the lowest loss.
    """
    peak, schedule = recipe.train.learning_rate, recipe.train.schedule
    if step < plan.warmup_steps:
        return peak * (step + 1) / plan.warmup_steps
    if schedule == "constant":
        return peak
    stable_until = max(plan.warmup_steps, plan.total_steps - plan.decay_steps if schedule == "wsd" else 0)
    progress = max(0, step - stable_until) / max(1, plan.total_steps - stable_until)
    if schedule == "wsd":
        return peak * (1 - math.sqrt(progress))
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
