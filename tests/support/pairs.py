"""A toy objective on pairs: of two answers to one prompt, the weighted tokens of the first are to be the likelier ones.

As a program it trains a run with it:   python tests/support/pairs.py BASE RUN
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.unit.train.conftest import FULL, Job, prepared
from torch.nn.functional import softplus

from tunesmith.core.records import SEQUENCE_LENGTHS, Column, TokenizedExample
from tunesmith.data.token_file import write_tokens
from tunesmith.kernels.token_loss import TokenLoss
from tunesmith.objectives.base import Measure, Objective
from tunesmith.train.train import train

SIGN, WEIGHT = Column("sign", "float64", "sequence"), Column("weight", "float64")
BETA = 0.2


def margins(found: TokenLoss) -> torch.Tensor:
    """Return by how many weighted nats the first answer of each pair is the likelier one [pairs]."""
    likelihoods = found.by_sequence(-found.nll * found.columns["weight"])
    return (likelihoods * found.columns["sign"]).view(-1, 2).sum(1)


def loss(found: TokenLoss) -> torch.Tensor:
    return softplus(-BETA * margins(found)).sum()


PAIRS = Objective(
    "pairs",
    loss=loss,
    divisor=lambda tokens, rows: len(rows),
    measures=(
        Measure("loss", lambda found: (loss(found), len(margins(found))), higher_is_better=False),
        Measure("pair_accuracy", lambda found: ((margins(found) > 0).sum(), len(margins(found))), is_share=True),
    ),
    columns=frozenset({SEQUENCE_LENGTHS, SIGN, WEIGHT}),
)


def random_pairs(count: int, seed: int) -> list[TokenizedExample]:
    """Return pairs of answers of 2 to 24 random tokens to prompts of 8 to 20."""
    drawn, found = np.random.default_rng(seed), []
    for number in range(count):
        prompt = drawn.integers(3, 300, int(drawn.integers(8, 20))).tolist()
        answers = [drawn.integers(3, 300, int(drawn.integers(2, 24))).tolist() for _ in range(2)]
        trained = [place >= len(prompt) for answer in answers for place in range(len(prompt) + len(answer))]
        columns: dict[Column, tuple[float, ...]] = {
            SEQUENCE_LENGTHS: tuple(len(prompt) + len(answer) for answer in answers),
            SIGN: (1.0, -1.0),
            WEIGHT: tuple(drawn.uniform(0.5, 2, len(trained)).tolist()),
        }
        ids = [token for answer in answers for token in (*prompt, *answer)]
        found.append(TokenizedExample(f"{seed}-{number}", tuple(ids), tuple(trained), columns))
    return found


def prepared_pairs(folder: Path, base: Path, **train: Any) -> Job:
    """Make a run of pairs that is prepared and not trained."""
    job = prepared(folder, base, FULL, select_best_by="pair_accuracy", **train)
    for split, count, seed in (("train", 24, 1), ("valid", 6, 2), ("test", 3, 3)):
        write_tokens(job.run.tokens(split), random_pairs(count, seed))
    return job


if __name__ == "__main__":
    run = Path(sys.argv[2])
    job = prepared_pairs(run, Path(sys.argv[1]), epochs=10, packing="always")
    train(job.recipe, job.run, PAIRS)
