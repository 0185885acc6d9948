"""How the rows of a step are shared out to processes, and how much of their time that leaves them idle."""

import heapq
from collections.abc import Iterable, Sequence

from tunesmith.data.batches import TokenDataset, batch_indices
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe

# So many steps, spread over the run, tell how even all of them are.
_STEPS = 200


def assign_ranks(rows: Iterable[int], lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Return the rows of each process: about as many tokens as every other has.

    The longest row goes to who has least so far (Graham 1969, "Bounds on multiprocessing timing anomalies").
    """
    loads = [(0, number) for number in range(processes)]  # a heap
    shares: list[list[int]] = [[] for _ in loads]
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        load, least = loads[0]
        heapq.heapreplace(loads, (load + int(lengths[row]), least))
        shares[least].append(row)
    return shares


def balance_ranks(recipe: Recipe, tokens: TokenDataset, processes: int) -> float:
    """Return what part of the time that a step's rows take all processes work, where a row costs as its tokens do.

    1 where each has the same; the others wait for the one that has most.
    """
    if processes == 1:
        return 1.0
    steps = plan_steps(recipe, len(tokens))
    lengths = tokens.lengths.tolist()
    mean = most = 0.0
    for step in range(0, steps.total_steps, -(-steps.total_steps // _STEPS)):
        rows = batch_indices(
            step, rows=len(tokens), examples_per_step=recipe.train.examples_per_step,
            total_examples=steps.total_examples, seed=recipe.seed,
        )  # fmt: skip
        loads = [sum(lengths[row] for row in mine) for mine in assign_ranks(rows, lengths, processes)]
        mean, most = mean + sum(loads) / processes, most + max(loads)
    return mean / most
