"""Estimate before a run how large a gain its test set can show: the power of the paired comparison.

A comparison of n units excludes a threshold if the stricter interval of `bootstrap.py` does. Its half-width is about
t * spread / sqrt(n), where the spread is the standard deviation of the units' differences. So a gain is detected with
a probability of 80 % if it is (t + z) * spread / sqrt(n) above the threshold, with z the normal quantile of 80 %. This
is the usual power of a paired test; for evaluations of language models see Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640.

The spread is unknown before the run. `typical_spread` is at the upper end of what the founding jobs (docs/jobs) have
shown: 0.53 for the exact match and the execution of the demo's queries, 0.17 to 0.27 for the ROUGE of ViGGO and
DialogSum, and 0.02 to 0.10 for token accuracy. Rows of a group count as one unit, as if they always changed together.
"""

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist

from tunesmith.scoring.bootstrap import STRICT_ERROR_SHARE, min_units, widening
from tunesmith.scoring.metrics import find_metric, is_share
from tunesmith.scoring.verdict import paired_verdict

POWER = 0.8
"""The probability with which a gain of the estimated size is detected."""

_SPREAD_BINARY, _SPREAD_SHARE, _SPREAD_TOKEN_ACCURACY = 0.5, 0.25, 0.1
_MAX_UNITS = 10_000_000


def typical_spread(metric: str) -> float | None:
    """Return a typical standard deviation of paired differences; None for a metric whose scale is unknown."""
    if metric == "token_accuracy":
        return _SPREAD_TOKEN_ACCURACY
    if not is_share(metric):
        return None
    known = find_metric(metric)
    return _SPREAD_BINARY if known and known.is_binary else _SPREAD_SHARE


def detectable_gain(units: int, spread: float, confidence: float) -> float | None:
    """Return the distance from the threshold that is detected with a probability of 80 %.

    None if there are so few units that every verdict is `cannot tell`.
    """
    if units < min_units(confidence):
        return None
    normal, error = NormalDist(), STRICT_ERROR_SHARE * (1 - confidence)
    half_width = normal.inv_cdf(1 - error / 2) * widening(error, units)
    return (half_width + normal.inv_cdf(POWER)) * spread / math.sqrt(units)


def units_needed(gain: float, spread: float, confidence: float) -> int:
    """Return the number of units with which a gain is detected with a probability of 80 %."""

    def suffice(units: int) -> bool:
        found = detectable_gain(units, spread, confidence)
        return found is not None and found <= gain

    return _smallest(suffice, min_units(confidence))


@cache
def excluded_drop(units: int, confidence: float) -> float:
    """Return the drop of a share that is excluded if no row changes at all; 1 if there are too few units for that.

    The interval is not a point even then, because unseen rows may change.
    """
    equal = [0.5] * units
    return -paired_verdict(equal, equal, confidence=confidence).low


def units_to_pass(max_drop: float, confidence: float) -> int:
    """Return the number of units with which a guard on a share can pass if no row changes."""
    return _smallest(lambda units: excluded_drop(units, confidence) <= max_drop, min_units(confidence))


def _smallest(suffice: Callable[[int], bool], fewest: int) -> int:
    """Return the smallest number from `fewest` up that suffices, or `_MAX_UNITS`; all larger numbers suffice, too."""
    high = fewest
    while high < _MAX_UNITS and not suffice(high):
        high *= 2
    low = max(fewest, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle + 1, high)
    return low
