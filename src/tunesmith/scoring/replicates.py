"""The verdict on several models that were trained with different seeds and answered the same rows."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.verdict import MIN_SEEDS, Comparison, SeedGain
from tunesmith.scoring.bootstrap import Transform
from tunesmith.scoring.seeds import seed_spread
from tunesmith.scoring.verdict import Scores, paired_verdict

_NOT_SCORES = ("id", "group", "failed", "samples", "tokens")


def replicated_verdict(
    base: Scores,
    by_seed: Mapping[int, Scores],
    *,
    groups: Sequence[Hashable] | None = None,
    weights: Scores | None = None,
    transform: Transform | None = None,
    **settings: Any,
) -> Comparison:
    """Compare several tuned models of different seeds with a base. The interval covers the choice of rows and seeds.

    The gain is that of the mean score over seeds. `seeds.py` has the method.

    Args:
        by_seed: one score per row for each seed, the run's own seed first.
        groups, weights, transform: as in `paired_verdict`.
        settings: the other arguments of `paired_verdict`.

    Raises:
        RecipeError: there are fewer than 3 seeds.
        DataError, RecipeError: as `paired_verdict`.
    """
    if len(by_seed) < MIN_SEEDS:
        hint = "train with more seeds, or compare one model"
        message = f"{len(by_seed)} seeds do not show how much training varies; at least {MIN_SEEDS} do"
        raise RecipeError(message, hint=hint, code="too-few-seeds")
    shared: dict[str, Any] = {"groups": groups, "weights": weights, "transform": transform, **settings}
    each = {seed: paired_verdict(base, scores, **shared) for seed, scores in by_seed.items()}  # checks the scores, too
    scores = np.array(list(by_seed.values()), dtype=np.float64)
    of_rows = np.ones(len(base)) if weights is None else np.asarray(weights, dtype=np.float64)
    slope = 1.0
    if transform is not None:
        means = scores @ of_rows / of_rows.sum()
        gains = [comparison.gain for comparison in each.values()]
        slope = (max(gains) - min(gains)) / float(np.ptp(means)) if np.ptp(means) else 0.0
    spread = seed_spread(np.asarray(base, dtype=np.float64), scores, of_rows, groups, slope)
    found = paired_verdict(base, scores.mean(axis=0), spread=spread, **shared)
    seeds = tuple(SeedGain(seed, one.tuned, one.gain, one.low, one.high) for seed, one in each.items())
    return replace(found, seeds=seeds)


def mean_rows(by_seed: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of `scores.jsonl` with the mean of each value over the seeds.

    A row that failed for one seed failed.

    Args:
        by_seed: the rows of each seed, in the same order.

    Raises:
        DataError: the seeds have other rows.
    """
    means = []
    for rows in zip(*by_seed, strict=True):
        first = rows[0]
        if any(row["id"] != first["id"] for row in rows):
            raise DataError("the seeds were not asked the same rows", code="unequal-lengths")
        failed = [row["failed"] for row in rows if "failed" in row]
        names = [name for name in first if name not in _NOT_SCORES and all(name in row for row in rows)]
        mean = {key: first[key] for key in ("id", "group", "tokens") if key in first}
        mean |= {name: fmean(row[name] for row in rows) for name in names}
        means.append({**mean, "failed": failed[0]} if failed else mean)
    return means
