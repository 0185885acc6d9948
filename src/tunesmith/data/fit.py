"""Which division of a run's rows fits the memory there is: asked by `plan` before, and by training at its start.

The rows of every step are known beforehand, and so is every forward pass that will be made.
"""

import heapq
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS
from tunesmith.data.batches import TokenDataset, batch_indices
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy
from tunesmith.estimate.memory import MemoryEstimate, MicroBatchShape, estimate_memory, weights_bytes
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schedule import StepPlan, default_micro_batch_tokens, plan_steps
from tunesmith.recipe.schema import LoraBase, Recipe
from tunesmith.recipe.validation import sharding_unsupported_reason

# How many steps are looked at: those with the most tokens, and those with the longest rows.
_STEPS = 12
# Steps beyond this many are like those before.
_MOST_STEPS = 20_000
# Of what a packed sequence's length is a multiple. Products in bf16 on a processor are made anew for every shape that
# they have not seen, so few lengths matter more there than a little padding.
_LITTLE_PADDING, _FEW_LENGTHS = 32, 256
# What is left free where we choose: the estimate is good to about a seventh, and others use the machine, too.
_LEAVE_FREE = 0.15
# How much of it weights may take of a model that answers: the cache of what it has read has a quarter of the rest.
_FOR_WEIGHTS = 0.7
_GIB = 2**30

ENCODER_READS_ALONE = "an encoder reads every row by itself"


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What a pass is computed in, and the GiB there are for it."""

    compute_bytes: int
    on_gpu: bool
    available_gib: float

    @property
    def for_us(self) -> float:
        """What we fill where the choice is ours."""
        return self.available_gib * (1 - _LEAVE_FREE)


def micro_batch_policy(
    recipe: Recipe, room: MemoryBudget, *, apart: bool, share: bool, by_row: bool, reach: int
) -> MicroBatchPolicy:
    """Return how rows are cut into forward passes where memory does not matter.

    Args:
        apart: whether the model keeps rows apart that stand side by side.
        share: whether what rows begin with in common may be computed once.
        by_row: whether its attention is computed row by row there.
        reach: how many tokens its attention reaches over.
    """
    train = recipe.train
    return MicroBatchPolicy(
        most_tokens=train.micro_batch_tokens or default_micro_batch_tokens(room.compute_bytes, on_gpu=room.on_gpu),
        rows=None if train.micro_batch == "auto" else train.micro_batch,
        packing=train.packing if apart else "never",
        share=share,
        by_row=by_row,
        reach=reach,
        multiple=_FEW_LENGTHS if room.compute_bytes < 4 and not room.on_gpu else _LITTLE_PADDING,
    )


def max_fitting_rows(
    recipe: Recipe,
    shapes: Shapes,
    tokens: TokenDataset,
    division: MicroBatchPolicy,
    room: MemoryBudget,
    *,
    new_tokens: int,
    parts: int = 1,
) -> tuple[MicroBatchPolicy, MemoryEstimate]:
    """Return the largest division up to `division` that fits, and what the run needs with it.

    Where the recipe gives `micro_batch` or `micro_batch_tokens` itself, they stand. Where nothing fits, rows are passed
    one by one, and the memory that is returned says that it does not suffice.
    """
    steps = plan_steps(recipe, len(tokens))
    rows = _heaviest(tokens, steps, recipe.train.examples_per_step, recipe.seed)

    needs = partial(
        estimate_memory, recipe, shapes, compute_bytes=room.compute_bytes, on_gpu=room.on_gpu, new_tokens=new_tokens,
        parts=parts,
    )  # fmt: skip

    def needed(one: MicroBatchPolicy) -> MemoryEstimate:
        passes = {_pass(tokens, group, one) for mine in rows for group in one.groups(tokens, mine)}
        return max(map(needs, passes), key=lambda memory: memory.training)

    memory = needed(division)
    if recipe.train.micro_batch != "auto" or recipe.train.micro_batch_tokens is not None:
        return division, memory
    longest = int(tokens.lengths.max())
    while memory.training > room.for_us and division.most_tokens > longest:
        division = replace(division, most_tokens=max(division.most_tokens // 2, longest))
        memory = needed(division)
    return division, memory


def estimated_memory(
    recipe: Recipe, shapes: Shapes, tokens: TokenDataset, room: MemoryBudget, *, new_tokens: int, parts: int = 1
) -> tuple[MicroBatchPolicy, MemoryEstimate]:
    """Return the same before there is a model to be asked how it keeps rows apart, from what its shapes tell."""
    drops = shapes.dropout or (isinstance(recipe.tuning, LoraBase) and recipe.tuning.dropout > 0)
    by_row = shapes.fused_attention and recipe.model.attention != "eager"
    division = micro_batch_policy(
        recipe, room, apart=not shapes.has_encoder, share=not drops, by_row=by_row, reach=shapes.attention_window
    )
    return max_fitting_rows(recipe, shapes, tokens, division, room, new_tokens=new_tokens, parts=parts)


def sharding_of(
    recipe: Recipe, shapes: Shapes, tokens: TokenDataset, room: MemoryBudget, processes: int, *, new_tokens: int
) -> Sharding:
    """Return what each of so many processes keeps of the model: all of it, if that fits and the recipe lets us choose.

    Raises:
        RecipeError: what the recipe asks for cannot be done with this model.
    """
    asked, has_encoder = recipe.launch.sharding, shapes.has_encoder and bool(recipe.train.valid_metrics)
    if processes == 1:
        return "none"
    if asked != "auto":
        if asked != "none" and has_encoder:
            raise RecipeError(
                "a divided model with an encoder cannot answer while it trains", where="launch.sharding",
                hint="remove train.valid_metrics, or set it to none",
            )  # fmt: skip
        return asked
    if has_encoder or sharding_unsupported_reason(recipe):
        return "none"
    _, memory = estimated_memory(recipe, shapes, tokens, room, new_tokens=new_tokens)
    return "none" if memory.training <= room.available_gib else "full"


def fits_for_inference(recipe: Recipe, shapes: Shapes, room: MemoryBudget) -> bool:
    """Say whether there is room for all weights of a model and for what it reads and writes."""
    return weights_bytes(recipe, shapes, room.compute_bytes) / _GIB <= room.available_gib * _FOR_WEIGHTS


def refuse_to_pack(recipe: Recipe, reason: str | None) -> None:
    """Raise RecipeError where the recipe always packs rows and there is a reason why they must not be."""
    if reason and recipe.train.packing == "always":
        raise RecipeError(f"rows cannot share a sequence: {reason}", where="train.packing", hint="use auto")


def refuse_rows_beyond(positions: int | None, longest: int) -> None:
    """Raise RecipeError for rows that a model cannot read to their end: now, and not after training."""
    if positions is not None and longest > positions:
        raise RecipeError(
            f"rows have up to {longest} tokens, and the model knows {positions} positions",
            where="data.max_tokens_per_example",
            hint=f"set it to {positions} or less",
        )


@lru_cache(maxsize=1)  # a plan asks for several numbers of machines
def _heaviest(tokens: TokenDataset, steps: StepPlan, size: int, seed: int) -> set[tuple[int, ...]]:
    """Return the rows of the steps that may need most."""
    rows = [
        batch_indices(
            step,
            rows=len(tokens),
            examples_per_step=size,
            total_examples=steps.total_examples,
            seed=seed,
        )
        for step in range(min(steps.total_steps, _MOST_STEPS))
    ]
    most = heapq.nlargest(_STEPS, rows, key=lambda mine: int(tokens.lengths[mine].sum()))
    longest = heapq.nlargest(_STEPS, rows, key=lambda mine: int(tokens.lengths[mine].max()))
    return {tuple(mine) for mine in (*most, *longest)}


def _pass(tokens: TokenDataset, group: MicroBatch, division: MicroBatchPolicy) -> MicroBatchShape:
    trained = tokens.trained_tokens(group.rows)
    if group.shared is not None:
        length = division.packed_length(tokens.packed_tokens(group.rows, group.shared))
        width = max(tokens.sequence_lengths(group.rows)) if division.by_row else length
        return MicroBatchShape(length, width, trained, masked=not division.by_row, by_row=division.by_row)
    width, source = tokens.padded_length(group.rows), tokens.padded_length(group.rows, ENCODER_IDS)
    count = len(tokens.sequence_lengths(group.rows))
    return MicroBatchShape(count * width, width, trained, source_tokens=count * source, source_width=source)
