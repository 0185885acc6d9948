"""An objective: the loss that training takes from an example, and the values that validation measures.

Every loss here is a function of the log-likelihoods of trained tokens, so one forward pass of a micro-batch is all that
an objective needs, and the memory estimate counts one. Examples that belong together, such as two answers to one
prompt, are the sequences of one example: they are in one micro-batch, on one rank and in one step.
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
    """A value that validation reports, and that may select the checkpoint: a sum over all examples, divided by another.

    Attributes:
        sums: returns the two numbers that one forward pass adds, to the dividend and to the divisor.
        is_share: values lie between 0 and 1, and are shown in percent.
    """

    name: str
    sums: Callable[[TokenLoss], tuple[torch.Tensor | float, torch.Tensor | float]]
    higher_is_better: bool = True
    is_share: bool = False

    @property
    def label(self) -> str:
        """How people write the name."""
        return self.name.replace("_", " ")

    def format(self, value: float) -> str:
        """Return a value with its label, for the log."""
        return f"{self.label} {value:{'.1%' if self.is_share else '.4f'}}"


@dataclass(frozen=True, slots=True)
class Objective:
    """How a model learns from examples.

    Attributes:
        loss: returns the loss of one forward pass, a sum over its examples. Its gradient weighs every token.
        divisor: returns what the losses of a whole step are divided by, over all ranks, given the step's rows.
        measures: what validation reports.
        columns: the columns that an example must store besides INPUT_IDS and TRAINED.
    """

    name: str
    loss: Callable[[TokenLoss], torch.Tensor]
    divisor: Callable[[TokenDataset, Sequence[int]], float]
    measures: tuple[Measure, ...]
    columns: frozenset[Column] = frozenset()


def require_columns(objective: Objective, tokens: TokenDataset) -> None:
    """Raise RecipeError if the prepared examples lack what the objective reads."""
    if missing := sorted(column.name for column in objective.columns - tokens.columns):
        raise RecipeError(
            f"the prepared examples do not store {', '.join(missing)}, which the objective `{objective.name}` reads",
            hint="prepare them for this objective",
        )
