"""Supervised fine-tuning: the negative log-likelihood of the trained tokens, with equal weights."""

from tunesmith.data.token_dataset import TokenDataset
from tunesmith.objectives.base import Measure, Objective

SFT = Objective(
    "sft",
    loss=lambda tokens: tokens.nll.sum(),
    divisor=TokenDataset.trained_tokens,
    measures=(
        Measure("loss", lambda tokens: (tokens.nll.double().sum(), tokens.nll.numel()), higher_is_better=False),
        Measure("token_accuracy", lambda tokens: (tokens.correct.sum(), tokens.nll.numel()), is_share=True),
    ),
)
