"""Recipe + counts of prepared rows -> the numbers of the run. Pure arithmetic, no torch."""

import math
from dataclasses import dataclass

from tunesmith.recipe.schema import Recipe

# Settings of `train` that decide how rows are cut into forward passes and what is kept, never what is learned.
TRAJECTORY_NEUTRAL_KEYS = (
    "micro_batch",
    "micro_batch_tokens",
    "packing",
    "activation_checkpointing",
    "keep_checkpoints",
)
# Settings of `evaluate` that decide how answers are decoded, also those of validation.
DECODING_KEYS = ("max_new_tokens", "beams")
# Padded tokens of one micro-batch on a GPU where the recipe leaves it to us: enough to keep its matrix units busy.
_MOST_ON_GPU = 16384
# The same on a processor, in bytes of a number: 1,024 tokens in fp32, which is as fast as more there and leaves memory,
# and 2,048 in bf16, whose matrix units want more at once.
_MOST_BYTES_ON_CPU = 4096


def default_micro_batch_tokens(compute_bytes: int, *, on_gpu: bool) -> int:
    """Return how many padded tokens one forward pass has at most, of numbers of so many bytes."""
    return _MOST_ON_GPU if on_gpu else _MOST_BYTES_ON_CPU // compute_bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What will be executed: steps are optimizer steps, intervals count them."""

    train_rows: int
    total_examples: int
    total_steps: int
    warmup_steps: int
    valid_every_steps: int
    save_every_steps: int

    @property
    def epochs(self) -> float:
        """How often a training row is seen on average."""
        return self.total_examples / self.train_rows

    @property
    def validations(self) -> int:
        """How often the valid rows are read: before the first step, at every interval, and after the last step."""
        return 1 + math.ceil(self.total_steps / self.valid_every_steps)


def plan_steps(recipe: Recipe, train_rows: int) -> StepPlan:
    """Return the numbers of a run over `train_rows` rows.

    `epochs` and `max_steps` are both limits; the nearer one holds. The last step takes what is left of the rows.
    """
    train = recipe.train
    total_examples = max(1, round(train.epochs * train_rows))
    if train.max_steps is not None:
        total_examples = min(total_examples, train.max_steps * train.examples_per_step)
    total_steps = math.ceil(total_examples / train.examples_per_step)
    tenth = max(1, math.ceil(total_steps / 10))
    valid_every = train.valid_every_steps or tenth
    return StepPlan(
        train_rows=train_rows,
        total_examples=total_examples,
        total_steps=total_steps,
        warmup_steps=round(train.warmup_fraction * total_steps),
        valid_every_steps=valid_every,
        save_every_steps=train.save_every_steps or valid_every,
    )


def learning_rate_at(recipe: Recipe, plan: StepPlan, step: int) -> float:
    """Return the learning rate of a step counted from 0: linear warmup, then the recipe's schedule down to 0."""
    peak = recipe.train.learning_rate
    if step < plan.warmup_steps:
        return peak * (step + 1) / plan.warmup_steps
    if recipe.train.schedule == "constant":
        return peak
    done = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    if recipe.train.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
