"""Choose the valid rows for the validation loss: the same at every validation, and few enough to be cheap."""

from collections.abc import Sequence
from typing import Any

from tunesmith.data.split import choose_by_hash
from tunesmith.recipe.schema import Recipe

# All validations together read at most this fraction of the tokens that training reads ...
MAX_TRAINING_FRACTION = 0.1
# ... but at least this many rows, because the mean of fewer is too noisy.
MIN_ROWS = 8


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
    max_tokens = MAX_TRAINING_FRACTION * training_tokens / validations
    count = len(set(ids))
    while True:
        indices = _indices_of(ids, choose_by_hash(ids, count, recipe.seed))
        tokens = sum(int(lengths[index]) for index in indices)
        if tokens <= max_tokens or count <= MIN_ROWS:
            return indices
        count = max(MIN_ROWS, min(count - 1, int(count * max_tokens / tokens)))


def _indices_of(ids: Sequence[str], chosen: set[str]) -> list[int]:
    return [index for index, id_ in enumerate(ids) if id_ in chosen]
