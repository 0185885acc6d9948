"""Warnings of `plan` about settings that only make sense for some numbers of rows and steps."""

from collections.abc import Iterator, Mapping

from tunesmith.recipe.schedule import StepPlan
from tunesmith.recipe.schema import Recipe


def advice(recipe: Recipe, steps: StepPlan, counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the warnings.

    Args:
        counts: the number of rows of each split.
    """
    if recipe.train.stop_early is None:
        return
    if not counts["valid"]:
        yield "train.stop_early has no effect, because there are no valid rows"
    elif not steps.can_stop_early:
        yield (
            f"train.stop_early has no effect: of {steps.validations} validations, {max(0, steps.validations - 2)} are "
            f"between the first and the last step, and stopping takes more than {steps.stop_after}"
        )
