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


SeedDraw = Callable[[np.random.Generator, int, int, float], dict[str, Any]]
"""Returns arguments of `replicated_verdict` for numbers of rows and seeds and the standard deviation of the seeds."""


def _seed_effects(random: np.random.Generator, seeds: int, deviation: float) -> np.ndarray:
    """Return the effect of each seed on all rows [seeds, 1]: normal, within three standard deviations."""
    return deviation * np.clip(random.normal(size=(seeds, 1)), -3, 3)


def _by_seed(scores: np.ndarray) -> dict[int, np.ndarray]:
    return dict(enumerate(scores))


def binary_by_seed(gain: float) -> SeedDraw:
    """Right and wrong answers; half of the rows are answered by the same luck for all seeds."""

    def draw(random: np.random.Generator, rows: int, seeds: int, deviation: float) -> dict[str, Any]:
        ease = random.uniform(0.3, 0.6, rows)
        luck = np.where(random.random(rows) < 0.5, random.random(rows), random.random((seeds, rows)))
        tuned = luck < ease + gain + _seed_effects(random, seeds, deviation)
        return {"base": (random.random(rows) < ease).astype(float), "by_seed": _by_seed(tuned.astype(float))}

    return draw


def graded_by_seed(gain: float) -> SeedDraw:
    """Skewed gains of rows, with noise of each row and seed."""

    def draw(random: np.random.Generator, rows: int, seeds: int, deviation: float) -> dict[str, Any]:
        base, of_rows = random.beta(2, 4, rows), 0.15 * (random.exponential(size=rows) - 1)
        noise = random.normal(0, 0.1, (seeds, rows))
        return {
            "base": base,
            "by_seed": _by_seed(base + gain + of_rows + noise + _seed_effects(random, seeds, deviation)),
        }

    return draw


def clustered_by_seed(gain: float) -> SeedDraw:
    """Graded scores in groups of one to five rows that change together, for all seeds and for each seed."""

    def draw(random: np.random.Generator, rows: int, seeds: int, deviation: float) -> dict[str, Any]:
        groups = np.repeat(np.arange(rows), random.integers(1, 6, rows))[:rows]
        base = random.random(rows)
        moved = random.normal(0, 0.12, rows)[groups] + random.normal(0, 0.08, (seeds, rows))[:, groups]
        tuned = base + gain + moved + random.normal(0, 0.1, (seeds, rows)) + _seed_effects(random, seeds, deviation)
        return {"base": base, "by_seed": _by_seed(tuned), "groups": groups.tolist()}

    return draw


def perplexity_by_seed(gain: float) -> SeedDraw:
    """Log-likelihoods per token, of rows of different lengths."""

    def draw(random: np.random.Generator, rows: int, seeds: int, deviation: float) -> dict[str, Any]:
        base = -random.gamma(4, 0.5, rows)
        noise = random.normal(0, 0.25, rows) + random.normal(0, 0.15, (seeds, rows))
        tuned = base + gain + noise + _seed_effects(random, seeds, deviation)
        tokens = np.round(random.lognormal(3, 0.8, rows)) + 1
        return {"base": base, "by_seed": _by_seed(tuned), "weights": tokens, "transform": lambda mean: -math.exp(-mean)}

    return draw


BY_SEED: dict[str, Callable[[float], SeedDraw]] = {
    "binary": binary_by_seed,
    "graded": graded_by_seed,
    "clustered": clustered_by_seed,
    "perplexity": perplexity_by_seed,
}
"""By kind of scores: the draw for a gain of the mean score."""
