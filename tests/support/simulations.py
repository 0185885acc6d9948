"""Draws of the scores of two models on the same rows, whose true gain is known, to measure how often a verdict errs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator, int], dict[str, Any]]
"""Returns arguments of `paired_verdict` for a number of rows."""


def binary(base: float, tuned: float, shared: float) -> Draw:
    """Right and wrong answers; a share of the rows is equally difficult for both models."""

    def draw(random: np.random.Generator, rows: int) -> dict[str, Any]:
        own = random.random((2, rows))
        same = random.random(rows) < shared
        difficulty = np.where(same, own[0], own[1])
        return {"base": (own[0] < base).astype(float), "tuned": (difficulty < tuned).astype(float)}

    return draw


def graded(gain: float) -> Draw:
    """Scores like ROUGE: skewed, from 0 to 1, with rows that are easy for both models."""

    def draw(random: np.random.Generator, rows: int) -> dict[str, Any]:
        ease = random.beta(1.2, 4, rows) * 0.4
        base, tuned = ease + 0.6 * random.beta(1.2, 5, (2, rows))
        return {"base": base, "tuned": tuned * (1 - gain) + gain}

    return draw


def mostly_equal(positive: float) -> Draw:
    """Graded scores; half of them do not change."""

    def draw(random: np.random.Generator, rows: int) -> dict[str, Any]:
        sign = np.where(random.random(rows) < positive, 1, -1) * (random.random(rows) < 0.5)
        return {"base": np.full(rows, 0.4), "tuned": 0.4 + sign * random.beta(1, 4, rows)}

    return draw


def clustered(gain: float) -> Draw:
    """Graded scores in groups of one to five rows that change together."""

    def draw(random: np.random.Generator, rows: int) -> dict[str, Any]:
        groups = np.repeat(np.arange(rows), random.integers(1, 6, rows))[:rows]
        base = random.random(rows)
        moved = random.normal(0, 0.12, rows)[groups] + random.normal(gain, 0.1, rows)
        return {"base": base, "tuned": base + moved, "groups": groups.tolist()}

    return draw


def perplexity(gain: float) -> Draw:
    """Log-likelihoods per token, of rows of different lengths."""

    def draw(random: np.random.Generator, rows: int) -> dict[str, Any]:
        base = -random.gamma(4, 0.5, rows)
        tuned = base + random.normal(gain, 0.25, rows)
        tokens = np.round(random.lognormal(3, 0.8, rows)) + 1
        return {"base": base, "tuned": tuned, "weights": tokens, "transform": lambda mean: -math.exp(-mean)}

    return draw


EQUAL: dict[str, Draw] = {
    "binary": binary(0.5, 0.5, 0.6),
    "binary, nearly all right": binary(0.95, 0.95, 0.5),
    "graded": graded(0.0),
    "mostly equal": mostly_equal(0.5),
    "clustered": clustered(0.0),
    "perplexity": perplexity(0.0),
}
GAINS: dict[str, tuple[Draw, float]] = {
    "binary": (binary(0.5, 0.6, 0.6), 0.1),
    "binary, nearly all right": (binary(0.8, 0.92, 0.5), 0.12),
    # the mean of the scores is 0.4 * 1.2 / 5.2 + 0.6 * 1.2 / 6.2
    "graded": (graded(0.05), 0.05 * (1 - 0.4 * 1.2 / 5.2 - 0.6 * 1.2 / 6.2)),
    "mostly equal": (mostly_equal(0.7), 0.5 * 0.4 * 0.2),
    "clustered": (clustered(0.05), 0.05),
    "perplexity": (perplexity(0.1), math.exp(2) - math.exp(1.9)),
}
