"""Which valid rows the loss is measured on: the same at every validation, and few enough to be cheap."""

from collections.abc import Sequence
from typing import Any

from tunesmith.data.split import choose_by_hash
from tunesmith.recipe.schema import Recipe

# Validations together read at most this fraction of the tokens that training reads ...
MAX_TRAINING_FRACTION = 0.1
# ... but no fewer rows than this, whose mean would say little.
MIN_ROWS = 8


def select_validation_rows(
    recipe: Recipe, ids: Sequence[str], lengths: Any, *, validations: int, training_tokens: float
) -> list[int]:
    """Return the places of the valid rows whose loss every validation measures, chosen by hash.

    They follow from recipe and prepared rows alone, so a run that continues measures the same ones.

    Args:
        ids: the id of each valid row.
        lengths: tokens of each valid row [rows].
        validations: how often they are read.
        training_tokens: how many tokens training reads.
    """
    asked = recipe.train.valid_loss_rows
    if asked == "all":
        return list(range(len(ids)))
    if isinstance(asked, int):
        return _places(ids, choose_by_hash(ids, asked, recipe.seed))
    most = MAX_TRAINING_FRACTION * training_tokens / validations
    count = len(set(ids))
    while True:
        places = _places(ids, choose_by_hash(ids, count, recipe.seed))
        tokens = sum(int(lengths[place]) for place in places)
        if tokens <= most or count <= MIN_ROWS:
            return places
        count = max(MIN_ROWS, min(count - 1, int(count * most / tokens)))


def _places(ids: Sequence[str], chosen: set[str]) -> list[int]:
    return [place for place, one in enumerate(ids) if one in chosen]
