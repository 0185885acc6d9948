"""Supervised fine-tuning: the negative log-likelihood of the trained tokens, weighted by their source."""

import torch

from tunesmith.core.records import LOSS_WEIGHT
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.kernels.token_loss import TokenLoss
from tunesmith.objectives.base import Measure, Objective


def _weighted_loss(tokens: TokenLoss) -> torch.Tensor:
    """Return the sum of the losses, each multiplied by the weight of its sequence."""
    weights = tokens.columns.get(LOSS_WEIGHT.name)
    return tokens.nll.sum() if weights is None else (tokens.nll * weights[tokens.rows]).sum()


SFT = Objective(
    "sft",
    loss=_weighted_loss,
    divisor=TokenDataset.trained_weight,
    measures=(
        Measure("loss", lambda tokens: (tokens.nll.double().sum(), tokens.nll.numel()), higher_is_better=False),
        Measure("token_accuracy", lambda tokens: (tokens.correct.sum(), tokens.nll.numel()), is_share=True),
    ),
)
