"""What an objective is: everything that training and validation ask about what is learned from an example.

Every loss here is a function of the log-likelihoods of trained tokens, so one forward pass of a micro-batch is all that
an objective needs, and the memory estimate counts one. Examples that belong together, such as two answers to one
prompt, are the sequences of one example: they are in one micro-batch, on one rank and in one step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Column
from tunesmith.data.batches import TokenSet
from tunesmith.kernels.token_loss import TokenLoss


@dataclass(frozen=True, slots=True)
class Measure:
    """A value that validation reports, and that may select the checkpoint: a sum over all examples by another sum.

    Attributes:
        sums: returns what one forward pass adds to both sums.
        is_share: values lie between 0 and 1, and are shown in percent.
    """

    name: str
    sums: Callable[[TokenLoss], tuple[torch.Tensor | float, torch.Tensor | float]]
    higher_is_better: bool = True
    is_share: bool = False


@dataclass(frozen=True, slots=True)
class Objective:
    """What is learned from an example.

    Attributes:
        loss: returns the loss of one forward pass, a sum over its examples. Its gradient weighs every token.
        divisor: returns what the losses of a whole step are divided by, over all ranks, given the step's rows.
        measures: what validation reports.
        columns: what an example must store beside its tokens and which of them are trained.
    """

    name: str
    loss: Callable[[TokenLoss], torch.Tensor]
    divisor: Callable[[TokenSet, Sequence[int]], float]
    measures: tuple[Measure, ...]
    columns: frozenset[Column] = frozenset()


def require_columns(objective: Objective, tokens: TokenSet) -> None:
    """Raise RecipeError if the prepared examples lack what the objective reads."""
    if missing := sorted(column.name for column in objective.columns - tokens.columns):
        raise RecipeError(
            f"the prepared examples do not store {', '.join(missing)}, which the objective `{objective.name}` reads",
            hint="prepare them for this objective",
        )
