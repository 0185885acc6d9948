"""Early stopping: count the validations in a row that did not improve the metric that selects the best checkpoint.

The count is part of every checkpoint, so a resumed run stops at the same step as one without interruption.
"""

from dataclasses import replace

from tunesmith.recipe.training import StopEarly, Train
from tunesmith.train.checkpoint import State
from tunesmith.train.validate import is_better


def count_validation(state: State, stop_early: StopEarly | None, value: float | None, *, higher: bool) -> State:
    """Return the state after a validation.

    An improvement is measured from the last improvement, so slow progress adds up. A validation whose metric could not
    be computed (None) is not counted.

    Args:
        higher: whether higher values are better.
    """
    if stop_early is None or value is None:
        return state
    reference, margin = state.reference_value, stop_early.min_change
    limit = None if reference is None else reference + (margin if higher else -margin)
    if is_better(value, limit, higher=higher):
        return replace(state, reference_value=value, without_improvement=0)
    return replace(state, without_improvement=state.without_improvement + 1)


def stop_reason(train: Train, state: State) -> str | None:
    """Return why training stops at this state; None if it continues."""
    stop_early = train.stop_early
    if stop_early is None or state.without_improvement < stop_early.after_validations:
        return None
    margin = f" by more than {stop_early.min_change:g}" if stop_early.min_change else ""
    return f"{train.select_best_by} has not improved{margin} in {state.without_improvement} validations"
