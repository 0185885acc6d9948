"""The scores of a row with several sampled answers: the mean of its samples (mean@k), and pass@k.

Both are one number per row, so the interval over rows covers the noise of sampling as well: a row's number varies with
the row and with its samples, and so do the differences that are resampled. Drawing samples within a row again would
count this noise twice: Davison & Hinkley 1997, "Bootstrap Methods and Their Application", section 3.8 (resample the
highest level only); Miller 2024, "Adding Error Bars to Evals" (a question's score is the mean of its answers).
Simulations in `tests/unit/scoring/test_samples.py` verify the coverage.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tunesmith.scoring.metrics import find_metric

_PASS = "@pass"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the estimated probability that at least one of k samples passes, if `passed` of `samples` did.

    It is the share of the subsets of k samples that contain one that passed, and is unbiased: Chen et al. 2021,
    "Evaluating Large Language Models Trained on Code", equation 1.
    """
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def row_scores(metric: str, values: Sequence[float], *, passable: bool) -> dict[str, float]:
    """Return the scores of a row whose samples have some values: {metric: mean}, and `METRIC@passK` for several k.

    Args:
        passable: whether a sample with the value 1 has passed, see `is_passable`.
    """
    scores = {metric: fmean(values) if len(values) > 1 else values[0]}
    if passable:
        passed = sum(value >= 1 for value in values)
        scores |= {f"{metric}{_PASS}{k}": pass_at_k(len(values), passed, k) for k in _sizes(len(values))}
    return scores


def is_passable(metric: str, values: Sequence[float | None]) -> bool:
    """Return whether 1 is the value of a right answer: known of built-in metrics, else if all values are in 0..1."""
    known = find_metric(metric)
    return known.one_is_right if known else all(value is None or 0 <= value <= 1 for value in values)


def passes_of(metric: str, *rows: Mapping[str, Any]) -> list[str]:
    """Return the names of the pass@k of a metric that all of these rows of `scores.jsonl` have."""
    names = [name for name in rows[0] if name.startswith(f"{metric}{_PASS}")] if rows else []
    return [name for name in names if all(name in row for row in rows)]


def split_pass(name: str) -> tuple[str, int] | None:
    """Return (metric, k) of the name of a pass@k, such as `exact_match@pass4`; None for other names."""
    metric, found, size = name.rpartition(_PASS)
    return (metric, int(size)) if found and size.isdecimal() else None


def _sizes(samples: int) -> list[int]:
    """Return the k of pass@k: powers of two, and the number of samples; pass@1 is the mean of values 0 and 1."""
    powers = [2**power for power in range(1, samples.bit_length())]
    return sorted({*powers, samples} - {1})
