"""An objective: the loss of training, and the values that validation measures.

Each loss is a function of the log-likelihoods of trained tokens, so an objective needs one forward pass per
micro-batch, and the memory estimate counts one. Sequences that belong together, such as two answers to one prompt, form
one example: they are in one micro-batch, on one rank and in one step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Column
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.kernels.token_loss import TokenLoss


@dataclass(frozen=True, slots=True)
class Measure:
    """A value that validation reports and that may select the checkpoint: the quotient of two sums over all examples.

    Attributes:
        sums: returns the contributions of one forward pass to the dividend and to the divisor.
        is_share: values are between 0 and 1 and are shown in percent.
    """

    name: str
    sums: Callable[[TokenLoss], tuple[torch.Tensor | float, torch.Tensor | float]]
    higher_is_better: bool = True
    is_share: bool = False

    @property
    def label(self) -> str:
        """The name as it is displayed."""
        return self.name.replace("_", " ")

    def format(self, value: float) -> str:
        """Return the label and the value, for the log."""
        return f"{self.label} {value:{'.1%' if self.is_share else '.4f'}}"


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of training and the measures of validation.

    Attributes:
        loss: returns the loss of one forward pass, a sum over its examples.
        divisor: returns the number by which the losses of a step are divided on all ranks, given all rows of the step.
        measures: the values that validation reports.
        columns: the columns that an example must store in addition to INPUT_IDS and TRAINED.
    """

    name: str
    loss: Callable[[TokenLoss], torch.Tensor]
    divisor: Callable[[TokenDataset, Sequence[int]], float]
    measures: tuple[Measure, ...]
    columns: frozenset[Column] = frozenset()


def require_columns(objective: Objective, tokens: TokenDataset) -> None:
    """Raise RecipeError if the prepared examples lack what the objective reads."""
    if missing := ", ".join(sorted(column.name for column in objective.columns - tokens.columns)):
        message = f"the objective `{objective.name}` needs columns that the prepared examples lack: {missing}"
        raise RecipeError(message, hint="prepare the examples for this objective", code="examples-lack-columns")
