"""Warnings of `plan` about settings that only make sense for some sizes of models, numbers of rows or steps."""

from collections.abc import Iterator, Mapping

from tunesmith.recipe.schedule import StepPlan
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning

# The learning rates of AdamW that published runs of LoRA used or found best: the sweep over 28 models of Thinking
# Machines (tinker-cookbook, `hyperparam_utils.get_lr`) and QLoRA (Dettmers et al. 2023, arXiv:2305.14314). Some
# mixtures of 30B and 120B take as much as small models, so the range is the same for all sizes.
_LORA_RATES = {0: (1e-4, 1e-3)}
# LoRA's best rate is about ten times that of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret"). The lower
# ends, by the number of parameters from which they hold, are those of Tulu 3 in full fine-tuning: 5e-6 for 8B and 2e-6
# for 70B (Lambert et al. 2024, arXiv:2411.15124).
_FULL_RATES = {0: (5e-6, 1e-4), 20_000_000_000: (2e-6, 1e-4)}
_FAR = 10


def advice(recipe: Recipe, steps: StepPlan, counts: Mapping[str, int], parameters: int) -> Iterator[str]:
    """Yield the warnings.

    Args:
        counts: the number of rows of each split.
        parameters: the number of parameters of the base.
    """
    yield from _learning_rate(recipe, parameters)
    if recipe.train.stop_early is None:
        return
    if not counts["valid"]:
        yield "train.stop_early has no effect, because there are no valid rows"
    elif not steps.can_stop_early:
        yield (
            f"train.stop_early has no effect: of {steps.validations} validations, {max(0, steps.validations - 2)} are "
            f"between the first and the last step, and stopping takes more than {steps.stop_after}"
        )


def _learning_rate(recipe: Recipe, parameters: int) -> Iterator[str]:
    """Yield a warning if the learning rate is more than ten times outside the usual range of AdamW.

    Muon's updates are scaled to AdamW's (Liu et al. 2025, arXiv:2502.16982), so its range is the same. The other
    optimizers have none.
    """
    rate, method = recipe.train.learning_rate, recipe.tuning.method
    if recipe.train.optimizer in ("adafactor", "sgd"):
        return
    rates = _FULL_RATES if isinstance(recipe.tuning, FullTuning) else _LORA_RATES
    low, high = next(rates[size] for size in sorted(rates, reverse=True) if parameters >= size)
    if not low / _FAR <= rate <= high * _FAR:
        unusual = "high" if rate > high else "low"
        yield (
            f"train.learning_rate {rate:g} is unusually {unusual} for `method: {method}` and a model of this size; "
            f"published runs use {low:g} to {high:g} (docs/training.md)"
        )
