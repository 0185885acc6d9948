"""A toy objective on pairs: the first of two answers should be likelier than the second, in weighted tokens.

As a program, it trains a run:   python tests/support/pairs.py BASE RUN
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.support.tokens import write_examples
from tests.unit.train.conftest import FULL, Job, prepared
from torch.nn.functional import softplus

from tunesmith.core.records import SEQUENCE_LENGTHS, Column, TokenizedExample
from tunesmith.kernels.token_loss import TokenLoss
from tunesmith.objectives.base import Measure, Objective
from tunesmith.train.train import train

SIGN, WEIGHT = Column("sign", "float64", "sequence"), Column("weight", "float64")
BETA = 0.2


def margins(token_loss: TokenLoss) -> torch.Tensor:
    """Return the weighted log-likelihood of the first answer minus that of the second, in nats [pairs]."""
    likelihoods = token_loss.by_sequence(-token_loss.nll * token_loss.columns["weight"])
    return (likelihoods * token_loss.columns["sign"]).view(-1, 2).sum(1)


def loss(token_loss: TokenLoss) -> torch.Tensor:
    return softplus(-BETA * margins(token_loss)).sum()


PAIRS = Objective(
    "pairs",
    loss=loss,
    divisor=lambda tokens, rows: len(rows),
    measures=(
        Measure("loss", lambda token_loss: (loss(token_loss), len(margins(token_loss))), higher_is_better=False),
        Measure(
            "pair_accuracy",
            lambda token_loss: ((margins(token_loss) > 0).sum(), len(margins(token_loss))),
            is_share=True,
        ),
    ),
    columns=frozenset({SEQUENCE_LENGTHS, SIGN, WEIGHT}),
)


def random_pairs(count: int, seed: int) -> list[TokenizedExample]:
    """Return pairs of random answers of 2 to 24 tokens to random prompts of 8 to 20."""
    generator, examples = np.random.default_rng(seed), []
    for number in range(count):
        prompt = generator.integers(3, 300, int(generator.integers(8, 20))).tolist()
        answers = [generator.integers(3, 300, int(generator.integers(2, 24))).tolist() for _ in range(2)]
        trained = [position >= len(prompt) for answer in answers for position in range(len(prompt) + len(answer))]
        columns: dict[Column, tuple[float, ...]] = {
            SEQUENCE_LENGTHS: tuple(len(prompt) + len(answer) for answer in answers),
            SIGN: (1.0, -1.0),
            WEIGHT: tuple(generator.uniform(0.5, 2, len(trained)).tolist()),
        }
        ids = [token for answer in answers for token in (*prompt, *answer)]
        examples.append(TokenizedExample(f"{seed}-{number}", tuple(ids), tuple(trained), columns))
    return examples


def prepared_pairs(folder: Path, base: Path, **train: Any) -> Job:
    """Return a prepared, untrained run of pairs."""
    job = prepared(folder, base, FULL, select_best_by="pair_accuracy", **train)
    for split, count, seed in (("train", 24, 1), ("valid", 6, 2), ("test", 3, 3)):
        write_examples(job.run.tokens(split), random_pairs(count, seed))
    return job


if __name__ == "__main__":
    run = Path(sys.argv[2])
    job = prepared_pairs(run, Path(sys.argv[1]), epochs=10, packing="always")
    train(job.recipe, job.run, PAIRS)
