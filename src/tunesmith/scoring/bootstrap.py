"""The confidence interval of a mean paired difference, by resampling, corrected for few rows or few differences.

It is a Bayesian bootstrap (Rubin 1981, "The Bayesian Bootstrap") over independent units: rows, or groups of rows.
Simulations (`tests/unit/scoring/test_verdict.py`) showed that two corrections are needed:

* Half a pseudo-row far above the gain and half a pseudo-row far below it, as Jeffreys' prior adds half a success and
  half a failure. Resampling alone assumes that unseen differences cannot occur: if few of 30 rows differ, its 95 %
  interval covers the true gain in only 72 % of cases. Bonett & Price 2012, "Adjusted Wald Confidence Interval for a
  Difference of Binomial Proportions Based on Paired Data", do the same with whole pseudo-rows.
* Widening by the ratio of Student's t quantile to the normal quantile and by sqrt((n + 1) / (n - 1)), because a
  bootstrap of n rows is too narrow by these factors: Hesterberg 2015, "What Teachers Should Know About the Bootstrap".

A second, stricter interval uses whole pseudo-rows and half the error probability. It excludes a gain about as rarely as
a sign test does: of 100 rows, 5 improved and none worsened do not exclude a gain of 0; 6 improved do.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError
from tunesmith.scoring.student_t import student_t_quantile

Array = npt.NDArray[np.float64]
Transform = Callable[[float], float]

_RESAMPLES = 10_000
_RESAMPLES_PER_TAIL = 100  # beyond each end of the interval: a high confidence needs more resamples
_MIN_RESAMPLES = 1_000
_MAX_DRAWS = 200_000_000  # take seconds; with more than 20,000 distinct rows there are fewer resamples
_DRAWS_PER_CHUNK = 2_000_000  # take 16 MB
_PSEUDO_ROWS = 0.5
STRICT_ERROR_SHARE = 0.5


class Interval(NamedTuple):
    """A confidence interval of the gain."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The independent units of a comparison, with equal units counted together.

    Attributes:
        cells: [distinct units, 3], sorted: weight, weighted base score, weighted tuned score. Sorting makes the result
            independent of the order of rows.
        counts: [distinct units], how often each occurs.
        base, tuned: the weighted means.
        lowest, highest: bounds of the scores.
        transform: function from a mean to the score; None for the mean itself.
    """

    cells: Array
    counts: Array
    base: float
    tuned: float
    lowest: float
    highest: float
    transform: Transform | None

    @classmethod
    def from_rows(
        cls, base: Array, tuned: Array, weights: Array, groups: Sequence[Hashable] | None, transform: Transform | None
    ) -> "Sample":
        """Make the units from arrays [rows]. At least one weight must be positive."""
        rows = np.column_stack((weights, weights * base, weights * tuned)) + 0.0  # turns -0.0 into 0.0
        cells, counts = np.unique(rows if groups is None else sum_by_group(rows, groups), axis=0, return_counts=True)
        total, used = math.fsum(weights), cells[:, 0] > 0
        means = math.fsum(rows[:, 1]) / total, math.fsum(rows[:, 2]) / total
        bounds = _score_range(float(min(base.min(), tuned.min())), float(max(base.max(), tuned.max())))
        return cls(cells[used], counts[used].astype(np.float64), *means, *bounds, transform)

    @property
    def units(self) -> int:
        """The number of units."""
        return int(self.counts.sum())

    def sorts_before(self, other: "Sample") -> bool | None:
        """Return whether this sample precedes another in a fixed order; None if both have equal units.

        Both must have the same number of distinct units, as a sample and its swapped copy do.
        """
        difference = np.append(self.cells - other.cells, self.counts - other.counts)
        nonzero = np.flatnonzero(difference)
        return bool(difference[nonzero[0]] < 0) if len(nonzero) else None

    def score(self, mean: float) -> float:
        """Convert a mean to its score; raise DataError if the score is not finite."""
        try:
            score = mean if self.transform is None else float(self.transform(mean))
        except (OverflowError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            hint = "the scores are too large; log-likelihoods must be in nats"
            raise DataError(f"a mean of {mean} has no finite score", hint=hint, code="not-a-number")
        return score

    def gain(self, base: float, tuned: float) -> float:
        """Return the difference of the scores of two means."""
        return self.score(tuned) - self.score(base)

    def standard_error(self, gain: float) -> float:
        """Return the standard error of the gain, from the sample variance of the units; 0 if there is only one unit."""
        if self.units < 2:
            return 0.0
        difference = self.tuned - self.base
        weight = float(self.counts @ self.cells[:, 0]) / self.units
        away = (self.cells[:, 2] - self.cells[:, 1] - difference * self.cells[:, 0]) / weight
        spread = math.sqrt(float(self.counts @ away**2) / (self.units - 1) / self.units)
        return spread if self.transform is None or not difference else spread * abs(gain / difference)

    def swapped(self) -> "Sample":
        """Return the sample with base and tuned swapped."""
        cells, order = np.unique(self.cells[:, [0, 2, 1]], axis=0, return_index=True)
        return replace(self, cells=cells, counts=self.counts[order], base=self.tuned, tuned=self.base)


def min_units(confidence: float) -> int:
    """Return the smallest number of units with which a sign test can exclude anything: 6 at 95 %."""
    return math.ceil(1 - math.log2(1 - confidence) - 1e-9)


def gain_intervals(
    sample: Sample, confidence: float, seed: int, half_width: Callable[[float], float] | None = None
) -> tuple[Interval, Interval]:
    """Return the interval of the gain, and the stricter interval around it.

    With fewer units than a sign test needs at this confidence, both intervals span the range of possible gains. If all
    scores are in 0..1, this is assumed to be their range.

    Args:
        half_width: the half-width that an independent error adds (`seeds.py`), by the probability that the interval
            fails. Half-widths are combined as the root of the sum of their squares.
    """
    error = 1 - confidence
    low, high = sample.gain(sample.highest, sample.lowest), sample.gain(sample.lowest, sample.highest)
    if sample.units < min_units(confidence):  # below the smallest p-value of a sign test, 2 ** (1 - units)
        return Interval(low, high), Interval(low, high)
    if (sample.lowest, sample.highest) != (0.0, 1.0):
        low, high = -math.inf, math.inf
    gain = sample.gain(sample.base, sample.tuned)
    resamples = max(_RESAMPLES, math.ceil(_RESAMPLES_PER_TAIL / (STRICT_ERROR_SHARE * error / 2)))
    intervals = []
    for gains, share in zip(_antisymmetric_gains(sample, resamples, seed), (1, STRICT_ERROR_SHARE), strict=True):
        widened = _widened_interval(gains, gain, share * error, sample.units)
        if half_width is not None:
            other = half_width(share * error)
            below, above = (math.hypot(gain - end, other) for end in widened)
            widened = Interval(gain - below, gain + above)
        intervals.append(Interval(max(widened.low, low), min(widened.high, high)))
    return intervals[0], intervals[1]


def sum_by_group(rows: Array, groups: Sequence[Hashable]) -> Array:
    """Add up the rows of each group: [rows, columns] -> [groups, columns].

    Sums are exact, so the order of rows does not matter.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return np.array([[math.fsum(column) for column in rows[chosen].T] for chosen in members.values()])


def _score_range(lowest: float, highest: float) -> tuple[float, float]:
    """Return the range of possible scores: 0 to 1 if it contains all observed scores, otherwise the observed range."""
    if lowest >= 0 and highest <= 1:
        return 0.0, 1.0
    if lowest == highest:  # a single value shows the scale only by its distance from 0
        return min(lowest, 0.0), max(highest, 0.0)
    return lowest, highest


def _widened_interval(gains: Array, gain: float, error: float, units: int) -> Interval:
    """Return the interval between quantiles of resampled gains [resamples], widened as the module's docstring says."""
    factor = widening(error, units)
    low, high = np.quantile(gains, (error / 2, 1 - error / 2))
    return Interval(gain - factor * max(gain - float(low), 0.0), gain + factor * max(float(high) - gain, 0.0))


def widening(error: float, units: int) -> float:
    """Return the factor by which an interval of so many units, which fails with probability `error`, is widened."""
    probability = 1 - error / 2
    ratio = student_t_quantile(probability, units - 1) / NormalDist().inv_cdf(probability)
    return ratio * math.sqrt((units + 1) / (units - 1))


def _antisymmetric_gains(sample: Sample, resamples: int, seed: int) -> Array:
    """Return resampled gains [2, resamples] that only change their signs when base and tuned are swapped."""
    swapped = sample.swapped()
    first = sample.sorts_before(swapped)
    gains = -_resampled_gains(swapped, resamples, seed) if first is False else _resampled_gains(sample, resamples, seed)
    return np.concatenate((gains, -gains), axis=1) if first is None else gains


def _resampled_gains(sample: Sample, resamples: int, seed: int) -> Array:
    """Return gains under random weights of the units, with half and with whole pseudo-rows: [2, resamples]."""
    pseudo = _pseudo_rows(sample)
    cells = np.vstack((sample.cells, pseudo, pseudo))
    shapes = np.append(sample.counts, [_PSEUDO_ROWS] * 4)  # the exponential weights of k units add up to gamma(k)
    resamples = min(resamples, max(_MIN_RESAMPLES, _MAX_DRAWS // len(shapes)))
    at_once = max(1, _DRAWS_PER_CHUNK // len(shapes))
    random = np.random.default_rng(seed)
    sums = np.empty((2, resamples, 3))
    for start in range(0, resamples, at_once):
        drawn = random.standard_gamma(shapes, size=(min(at_once, resamples - start), len(shapes)))
        sums[0, start : start + at_once] = drawn[:, :-2] @ cells[:-2]
        sums[1, start : start + at_once] = drawn @ cells
    means = sums[:, :, 1:] / sums[:, :, :1]
    if sample.transform is not None:
        means = np.array([[[sample.score(mean) for mean in pair] for pair in row] for row in means.tolist()])
    gains: Array = means[:, :, 1] - means[:, :, 0]
    return gains


def _pseudo_rows(sample: Sample) -> Array:
    """Return two cells [2, 3] of average weight, as far above and below the gain as the farthest unit.

    If all units have the same difference, their distance is the range of the scores, because nothing is known about
    other units.
    """
    weight = float(sample.counts @ sample.cells[:, 0]) / sample.units
    mean = sample.tuned - sample.base
    farthest = float(np.abs(sample.cells[:, 2] - sample.cells[:, 1] - mean * sample.cells[:, 0]).max()) / weight
    span = sample.highest - sample.lowest
    away = (farthest if farthest > 1e-9 * span else span) / 2
    above = (1.0, sample.base - away, sample.tuned + away)
    below = (1.0, sample.base + away, sample.tuned - away)
    return weight * np.array((above, below))
