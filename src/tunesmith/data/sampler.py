"""Choose the rows of each step and of the validation loss, and assign rows to the ranks.

The rows of a step are a pure function of (seed, step): resuming needs no sampler state, and neither the micro-batch
size nor the machine changes them.
"""

import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.split import choose_by_hash
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.recipe.schedule import StepPlan, plan_steps
from tunesmith.recipe.schema import Recipe

# The utilization is averaged over about this many steps, spread over the run.
_SAMPLED_STEPS = 200
# All validations together read at most this fraction of the tokens that training reads ...
MAX_VALIDATION_FRACTION = 0.1
# ... but at least this many rows, because the mean of fewer is too noisy.
MIN_VALIDATION_ROWS = 8


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """Return the order of the rows in an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)


def batch_indices(step: int, *, rows: int, examples_per_step: int, total_examples: int, seed: int) -> list[int]:
    """Return the rows of a step, counted from 0; the last step of a run may have fewer."""
    first = step * examples_per_step
    last = min(first + examples_per_step, total_examples)
    return [int(epoch_order(seed, position // rows, rows)[position % rows]) for position in range(first, last)]


def rows_of_step(recipe: Recipe, steps: StepPlan, step: int) -> list[int]:
    """Return `batch_indices` of a step of a recipe's run."""
    size, total, seed = recipe.train.examples_per_step, steps.total_examples, recipe.seed
    return batch_indices(step, rows=steps.train_rows, examples_per_step=size, total_examples=total, seed=seed)


def assign_ranks(rows: Iterable[int], lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Return the rows of each rank, so that all ranks have about as many tokens.

    Each row, longest first, goes to the rank with the fewest tokens (Graham 1969, "Bounds on multiprocessing timing
    anomalies").
    """
    loads = [(0, rank) for rank in range(world_size)]  # a heap
    assigned: list[list[int]] = [[] for _ in loads]
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + int(lengths[row]), rank))
        assigned[rank].append(row)
    return assigned


def estimate_rank_utilization(recipe: Recipe, tokens: TokenDataset, world_size: int) -> float:
    """Return the mean load of a rank divided by the largest load, with the cost of a row proportional to its tokens.

    It is 1 if all ranks have equally many tokens; otherwise they wait for the rank with the most.
    """
    if world_size == 1:
        return 1.0
    steps = plan_steps(recipe, len(tokens))
    lengths = tokens.lengths.tolist()
    mean = largest = 0.0
    for step in range(0, steps.total_steps, -(-steps.total_steps // _SAMPLED_STEPS)):
        rows = rows_of_step(recipe, steps, step)
        loads = [sum(lengths[row] for row in assigned) for assigned in assign_ranks(rows, lengths, world_size)]
        mean, largest = mean + sum(loads) / world_size, largest + max(loads)
    return mean / largest


def select_validation_rows(
    recipe: Recipe, ids: Sequence[str], lengths: Any, *, validations: int, training_tokens: float
) -> list[int]:
    """Return the indices of the valid rows whose loss every validation measures, chosen by hash.

    They depend on the recipe and the prepared rows only, so a resumed run measures the same rows.

    Args:
        ids: the id of each valid row.
        lengths: the tokens of each valid row [rows].
        validations: the number of validations.
        training_tokens: the tokens that training reads.
    """
    requested = recipe.train.valid_loss_rows
    if requested == "all":
        return list(range(len(ids)))
    if isinstance(requested, int):
        return _indices_of(ids, choose_by_hash(ids, requested, recipe.seed))
    max_tokens = MAX_VALIDATION_FRACTION * training_tokens / validations
    count = len(set(ids))
    while True:
        indices = _indices_of(ids, choose_by_hash(ids, count, recipe.seed))
        tokens = sum(int(lengths[index]) for index in indices)
        if tokens <= max_tokens or count <= MIN_VALIDATION_ROWS:
            return indices
        count = max(MIN_VALIDATION_ROWS, min(count - 1, int(count * max_tokens / tokens)))


def _indices_of(ids: Sequence[str], chosen: set[str]) -> list[int]:
    return [index for index, id_ in enumerate(ids) if id_ in chosen]
