"""Find the micro-batches and the sharding that fit the available memory, for `plan` and for the start of training.

The rows of every step follow from the seed, so every forward pass of a run is known before training starts.
"""

import heapq
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy
from tunesmith.data.sampler import batch_indices
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.estimate.activations import MicroBatchShape
from tunesmith.estimate.memory import MemoryEstimate, estimate_memory, weights_bytes
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schedule import StepPlan, default_micro_batch_tokens, plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import LoraBase
from tunesmith.recipe.validation import sharding_unsupported_reason

# The memory is estimated for this many steps with the most tokens, and for as many with the longest rows.
_STEPS = 12
# Later steps resemble the earlier ones, so the search ends here.
_MAX_STEPS = 20_000
# Packed sequences are padded to a multiple of this. On a CPU, oneDNN compiles a bf16 matrix product for every new
# shape, so having few different lengths saves more there than little padding does.
_LITTLE_PADDING, _FEW_LENGTHS = 32, 256
# The fraction of memory left free if we choose the size: the estimate is off by up to a seventh, and other programs
# run.
_FREE_FRACTION = 0.15
# The fraction of memory that the weights may take in inference. The KV cache gets a quarter of the rest.
_WEIGHTS_FRACTION = 0.7
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory available to one process, and the bytes per number that it computes with."""

    compute_bytes: int
    on_gpu: bool
    available_gib: float

    @property
    def usable_gib(self) -> float:
        """The memory to fill if the recipe does not set the size of micro-batches."""
        return self.available_gib * (1 - _FREE_FRACTION)


def make_micro_batch_policy(
    recipe: Recipe,
    budget: MemoryBudget,
    *,
    can_pack: bool,
    share_prefix: bool,
    packed_attention: bool,
    attention_window: int,
) -> MicroBatchPolicy:
    """Return the micro-batch policy of a recipe before it is reduced to fit memory.

    Args:
        can_pack: whether the model keeps packed rows from attending to each other.
        share_prefix: see `MicroBatchPolicy`, as are the remaining arguments.
    """
    train = recipe.train
    return MicroBatchPolicy(
        max_tokens=train.micro_batch_tokens or default_micro_batch_tokens(budget.compute_bytes, on_gpu=budget.on_gpu),
        rows=None if train.micro_batch == "auto" else train.micro_batch,
        packing=train.packing if can_pack else "never",
        share_prefix=share_prefix,
        packed_attention=packed_attention,
        attention_window=attention_window,
        pad_multiple=_FEW_LENGTHS if budget.compute_bytes < 4 and not budget.on_gpu else _LITTLE_PADDING,
    )


def fit_micro_batches(
    recipe: Recipe,
    shapes: Shapes,
    tokens: TokenDataset,
    policy: MicroBatchPolicy,
    budget: MemoryBudget,
    *,
    new_tokens: int,
    shards: int = 1,
) -> tuple[MicroBatchPolicy, MemoryEstimate]:
    """Halve a policy's `max_tokens` until training fits; return the policy and the memory that it needs.

    If the recipe sets `micro_batch` or `micro_batch_tokens`, the policy is returned unchanged. If even single rows do
    not fit, the policy with single rows is returned, and its memory exceeds the budget.

    Args:
        shards: the number of shards that the model is divided into.
    """
    heaviest = _heaviest_steps(tokens, plan_steps(recipe, len(tokens)), recipe.train.examples_per_step, recipe.seed)
    estimate = partial(
        estimate_memory, recipe, shapes, compute_bytes=budget.compute_bytes, on_gpu=budget.on_gpu,
        new_tokens=new_tokens, shards=shards,
    )  # fmt: skip

    def peak(candidate: MicroBatchPolicy) -> MemoryEstimate:
        passes = {_forward_pass(tokens, part, candidate) for rows in heaviest for part in candidate.split(tokens, rows)}
        return max(map(estimate, passes), key=lambda memory: memory.training)

    memory = peak(policy)
    if recipe.train.micro_batch != "auto" or recipe.train.micro_batch_tokens is not None:
        return policy, memory
    longest = int(tokens.lengths.max())
    while memory.training > budget.usable_gib and policy.max_tokens > longest:
        policy = replace(policy, max_tokens=max(policy.max_tokens // 2, longest))
        memory = peak(policy)
    return policy, memory


def estimate_micro_batches(
    recipe: Recipe, shapes: Shapes, tokens: TokenDataset, budget: MemoryBudget, *, new_tokens: int, shards: int = 1
) -> tuple[MicroBatchPolicy, MemoryEstimate]:
    """Call `fit_micro_batches` before the model is loaded, deriving from its shapes whether it can pack rows."""
    has_dropout = shapes.dropout or (isinstance(recipe.tuning, LoraBase) and recipe.tuning.dropout > 0)
    policy = make_micro_batch_policy(
        recipe,
        budget,
        can_pack=not shapes.has_encoder,
        share_prefix=not has_dropout,
        packed_attention=shapes.fused_attention and recipe.model.attention != "eager",
        attention_window=shapes.attention_window,
    )
    return fit_micro_batches(recipe, shapes, tokens, policy, budget, new_tokens=new_tokens, shards=shards)


def choose_sharding(
    recipe: Recipe, shapes: Shapes, tokens: TokenDataset, budget: MemoryBudget, processes: int, *, new_tokens: int
) -> Sharding:
    """Return the recipe's sharding; `auto` becomes `none` if the whole model fits in each process, else `full`.

    Raises:
        RecipeError: the recipe shards a model with an encoder and measures valid metrics.
    """
    requested, encoder_generates = recipe.launch.sharding, shapes.has_encoder and bool(recipe.train.valid_metrics)
    if processes == 1:
        return "none"
    if requested != "auto":
        if requested != "none" and encoder_generates:
            problem = "a sharded encoder-decoder model cannot generate answers during training"
            hint = "remove train.valid_metrics, or set launch.sharding: none"
            raise RecipeError(problem, where="launch.sharding", hint=hint, code="sharded-generation")
        return requested
    if encoder_generates or sharding_unsupported_reason(recipe):
        return "none"
    _, memory = estimate_micro_batches(recipe, shapes, tokens, budget, new_tokens=new_tokens)
    return "none" if memory.training <= budget.available_gib else "full"


def fits_for_inference(recipe: Recipe, shapes: Shapes, budget: MemoryBudget) -> bool:
    """Return whether all weights of a model fit, with room for the KV cache."""
    return weights_bytes(recipe, shapes, budget.compute_bytes) / _GIB <= budget.available_gib * _WEIGHTS_FRACTION


def check_packing_supported(recipe: Recipe, unsupported_reason: str | None) -> None:
    """Raise RecipeError if the recipe sets `packing: always` and the model cannot pack rows."""
    if unsupported_reason and recipe.train.packing == "always":
        problem, hint = f"rows cannot be packed: {unsupported_reason}", "set train.packing: auto"
        raise RecipeError(problem, where="train.packing", hint=hint, code="packing-unsupported")


def check_max_positions(max_positions: int | None, longest: int) -> None:
    """Raise RecipeError if the longest row has more tokens than the model has positions."""
    if max_positions is not None and longest > max_positions:
        problem = f"the longest row has {longest} tokens, and the model has only {max_positions} positions"
        hint = f"set data.max_tokens_per_example: {max_positions} or less"
        raise RecipeError(problem, where="data.max_tokens_per_example", hint=hint, code="too-many-tokens")


@lru_cache(maxsize=1)  # `plan` estimates several numbers of processes
def _heaviest_steps(tokens: TokenDataset, steps: StepPlan, size: int, seed: int) -> set[tuple[int, ...]]:
    """Return the rows of the steps with the most tokens and of those with the longest rows."""
    batches = [
        batch_indices(step, rows=len(tokens), examples_per_step=size, total_examples=steps.total_examples, seed=seed)
        for step in range(min(steps.total_steps, _MAX_STEPS))
    ]
    most_tokens_first = heapq.nlargest(_STEPS, batches, key=lambda rows: int(tokens.lengths[rows].sum()))
    longest_row_first = heapq.nlargest(_STEPS, batches, key=lambda rows: int(tokens.lengths[rows].max()))
    return {tuple(rows) for rows in (*most_tokens_first, *longest_row_first)}


def _forward_pass(tokens: TokenDataset, micro_batch: MicroBatch, policy: MicroBatchPolicy) -> MicroBatchShape:
    """Return the sizes of a micro-batch that the memory estimate needs."""
    trained = tokens.trained_tokens(micro_batch.rows)
    if micro_batch.shared is not None:
        length = policy.packed_length(tokens.packed_tokens(micro_batch.rows, micro_batch.shared))
        width = max(tokens.sequence_lengths(micro_batch.rows)) if policy.packed_attention else length
        return MicroBatchShape(
            length, width, trained, masked=not policy.packed_attention, by_row=policy.packed_attention
        )
    width, source = tokens.padded_length(micro_batch.rows), tokens.padded_length(micro_batch.rows, ENCODER_IDS)
    count = len(tokens.sequence_lengths(micro_batch.rows))
    return MicroBatchShape(count * width, width, trained, source_tokens=count * source, source_width=source)
