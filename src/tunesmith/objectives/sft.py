"""Supervised fine-tuning: the negative log-likelihood of the trained tokens, each of which counts the same."""

from tunesmith.data.token_dataset import TokenDataset
from tunesmith.objectives.base import Measure, Objective

SFT = Objective(
    "sft",
    loss=lambda found: found.nll.sum(),
    divisor=TokenDataset.trained_tokens,
    measures=(
        Measure("loss", lambda found: (found.nll.double().sum(), found.nll.numel()), higher_is_better=False),
        Measure("token_accuracy", lambda found: (found.correct.sum(), found.nll.numel()), is_share=True),
    ),
)
