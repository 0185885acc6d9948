"""Is the tuned model better? The gain on paired rows, an interval around it, and one of three words.

The interval is a Bayesian bootstrap (Rubin 1981, "The Bayesian Bootstrap") over rows, or over groups where rows share
one, with three corrections. Each is there because a simulation asked for it (`tests/unit/evaluate/test_verdict.py`):

* Half a pseudo-row far above the gain and half a pseudo-row far below it, as Jeffreys' prior adds half a success and
  half a failure. Resampling alone believes that what it did not see cannot happen: where few of 30 rows differ, its
  95 % interval covers 72 %. Bonett & Price 2012, "Adjusted Wald Confidence Interval for a Difference of Binomial
  Proportions Based on Paired Data", do the same with whole pseudo-rows for binary scores.
* Widening by Student's t over the normal quantile and by sqrt((n + 1) / (n - 1)), because a bootstrap of n rows is
  too narrow by that: Hesterberg 2015, "What Teachers Should Know About the Bootstrap".
* An end of the interval that excludes `min_gain` must exclude it at `_STRICTER` times the error as well; otherwise the
  stricter end is given. A true error of 2.5 % exceeds 10 in 400 by chance in four of ten batches of 400 comparisons,
  and the promise is about every batch.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError, RecipeError

Array = npt.NDArray[np.float64]
Transform = Callable[[float], float]

_RESAMPLES = 10_000
_FEWEST_RESAMPLES = 1_000
_MOST_DRAWS = 400_000_000  # seconds; beyond 40,000 distinct rows the resamples become fewer
_DRAWS_AT_ONCE = 2_000_000  # 16 MB
_PSEUDO_ROWS = 0.5
_STRICTER = 0.6
_HOPELESS = 1_000  # a gain that takes a thousand times the rows to tell from min_gain is not told from it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `paired_verdict` found.

    `gain` is `tuned - base`, `low` and `high` are its interval at `confidence`, all in the unit of the scores (of
    their transform, where one was given). `rows_needed` is about how many rows would settle it if gain and noise stay
    as they are; None where it is settled, or where the gain cannot be told from `min_gain`. `groups` is the number of
    independent units (`rows`, where no groups were given). `improved` and `worsened` count rows.
    """

    verdict: Literal["better", "not_better", "cannot_tell"]
    gain: float
    low: float
    high: float
    rows: int
    rows_needed: int | None
    base: float
    tuned: float
    confidence: float
    min_gain: float
    groups: int
    improved: int
    worsened: int


def paired_verdict(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    min_gain: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    transform: Transform | None = None,
) -> Verdict:
    """Judge whether the tuned system beats the base by more than `min_gain`.

    `better` if `low > min_gain`, `not_better` if `high <= min_gain`, else `cannot_tell`. The order of the rows does
    not matter, and swapping base and tuned mirrors the interval.

    Fewer units than a sign test needs (6 at 95 %) exclude nothing: the interval is everything the scores could be.
    Where all rows differ by the same amount, also by nothing, the interval is not a point, because rows unlike those
    seen may still be as frequent as about 4 / n. So 150 improved of 150 is `better`, and identical scores are
    `cannot_tell` unless `min_gain` lies above that.

    Args:
        base, tuned: one score a row, higher is better; the same rows in the same order.
        groups: rows that share a value depend on one another and are resampled together.
        min_gain: what the gain must exceed.
        confidence: of the interval; each end is wrong in at most half of the remainder.
        seed: of the resampling.
        weights: the score is the mean weighted with these, such as the tokens a row for token accuracy.
        transform: increasing; the score is this function of the mean, such as `lambda m: -math.exp(-m)` to judge the
            negated perplexity from log-likelihoods.

    Raises:
        DataError: no rows, unequal lengths, or a value that is not a finite number.
        RecipeError: an impossible `min_gain`, `confidence` or `seed`.
    """
    _check_settings(min_gain, confidence, seed)
    sample = _Sample.of(base, tuned, weights, groups, transform or float)
    gain = sample.gain(sample.base, sample.tuned)
    usual, strict = _intervals(sample, gain, confidence, seed)
    low = strict[0] if strict[0] <= min_gain < usual[0] else usual[0]
    high = strict[1] if usual[1] <= min_gain < strict[1] else usual[1]
    if not all(map(math.isfinite, (gain, low, high))):
        raise DataError("the scores are too large to be compared", hint="scores are usually between 0 and 1")
    settled = low > min_gain or high <= min_gain
    return Verdict(
        verdict="better" if low > min_gain else "not_better" if high <= min_gain else "cannot_tell",
        gain=gain,
        low=low,
        high=high,
        rows=sample.rows,
        rows_needed=None if settled else _rows_needed(sample.rows, gain, min_gain, strict),
        base=sample.transform(sample.base),
        tuned=sample.transform(sample.tuned),
        confidence=confidence,
        min_gain=min_gain,
        groups=sample.units,
        improved=sample.improved,
        worsened=sample.worsened,
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """The independent units. `cells` [kinds, 3] are (weight, weighted base, weighted tuned); `counts` [kinds].

    Equal units share a kind. `base` and `tuned` are weighted means; `lowest` and `highest` bound the scores.
    """

    cells: Array
    counts: Array
    base: float
    tuned: float
    lowest: float
    highest: float
    rows: int
    improved: int
    worsened: int
    transform: Transform

    @classmethod
    def of(
        cls,
        base: Sequence[float],
        tuned: Sequence[float],
        weights: Sequence[float] | None,
        groups: Sequence[Hashable] | None,
        transform: Transform,
    ) -> "_Sample":
        """Check the input and add it up."""
        before, after = _numbers(base, "base"), _numbers(tuned, "tuned")
        rows = len(before)
        each = np.ones(rows) if weights is None else _numbers(weights, "weights")
        _check_rows(rows, tuned=after, weights=each, groups=groups)
        if each.min() < 0 or not each.any():
            raise DataError("weights are negative, or all zero", hint="they say how much a row counts, such as tokens")
        cells = np.column_stack((each, each * before, each * after)) + 0.0  # -0.0 and 0.0 are one kind
        total = math.fsum(each)
        kinds, counts = np.unique(cells if groups is None else _by_group(cells, groups), axis=0, return_counts=True)
        return cls(
            cells=kinds[kinds[:, 0] > 0],
            counts=counts[kinds[:, 0] > 0].astype(np.float64),
            base=math.fsum(cells[:, 1]) / total,
            tuned=math.fsum(cells[:, 2]) / total,
            **_range(before, after),
            rows=rows,
            improved=int((after > before).sum()),
            worsened=int((after < before).sum()),
            transform=transform,
        )

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.counts.sum())

    @property
    def key(self) -> bytes:
        """Return something to order samples by."""
        return self.cells.tobytes() + self.counts.tobytes()

    def gain(self, base: float, tuned: float) -> float:
        """Return the gain between two means."""
        return float(self.transform(tuned)) - float(self.transform(base))

    def mirrored(self) -> "_Sample":
        """Return the sample with base and tuned swapped."""
        cells, order = np.unique(self.cells[:, [0, 2, 1]], axis=0, return_index=True)
        return replace(self, cells=cells, counts=self.counts[order], base=self.tuned, tuned=self.base)


def _numbers(values: Sequence[float], name: str) -> Array:
    """Return values as an array [rows]; raise DataError at the first that is not a finite number."""
    for index, value in enumerate(values):
        if not isinstance(value, (int, float, np.number, np.bool_)) or not math.isfinite(value):
            raise DataError(
                f"is {value!r}, not a finite number",
                where=f"{name}[{index}]",
                hint="leave out a row that was not scored from both systems, or give it the worst score",
            )
    return np.asarray(values, dtype=np.float64)


def _check_rows(rows: int, **others: Sequence[object] | Array | None) -> None:
    """Raise DataError unless there are rows and all inputs have one value a row."""
    if rows == 0:
        raise DataError("there are no rows to compare", hint="the test split is empty, or no row was scored")
    for name, values in others.items():
        if values is not None and len(values) != rows:
            raise DataError(
                f"base has {rows} rows, {name} has {len(values)}",
                hint="both systems answer the same rows in the same order",
            )


def _check_settings(min_gain: float, confidence: float, seed: int) -> None:
    """Raise RecipeError for settings that have no meaning."""
    if not math.isfinite(min_gain):
        raise RecipeError(f"min_gain is {min_gain}", hint="give a finite number in the unit of the score")
    if not 0.5 <= confidence <= 0.9999:
        raise RecipeError(f"confidence is {confidence}", hint="give a number from 0.5 to 0.9999, such as 0.95")
    if seed < 0:
        raise RecipeError(f"seed is {seed}", hint="give a whole number from 0 up")


def _by_group(cells: Array, groups: Sequence[Hashable]) -> Array:
    """Add up the rows of each group: [rows, 3] -> [groups, 3]. Exact sums, so the order of rows cannot matter."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return np.array([[math.fsum(column) for column in cells[rows].T] for rows in members.values()])


def _range(base: Array, tuned: Array) -> dict[str, float]:
    """Return what scores could be: 0 to 1 where all are in it, else what was seen."""
    lowest, highest = min(base.min(), tuned.min()), max(base.max(), tuned.max())
    if lowest >= 0 and highest <= 1:
        return {"lowest": 0.0, "highest": 1.0}
    if lowest == highest:  # a constant other than 0 or 1 tells nothing of the scale but its size
        return {"lowest": min(lowest, 0.0), "highest": max(highest, 0.0)}
    return {"lowest": float(lowest), "highest": float(highest)}


def _intervals(
    sample: _Sample, gain: float, confidence: float, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the interval (low, high) at the usual and at the stricter level."""
    error = 1 - confidence
    widest = (sample.gain(sample.highest, sample.lowest), sample.gain(sample.lowest, sample.highest))
    if 2 ** (1 - sample.units) > error:  # the smallest p-value of a sign test
        return widest, widest
    gains = _mirrorable_gains(sample, seed)
    bounded = (sample.lowest, sample.highest) == (0.0, 1.0)
    usual, strict = (_interval(row, gain, level, sample.units) for row, level in zip(gains, (error, _STRICTER * error), strict=True))
    if bounded:
        usual, strict = ((max(low, widest[0]), min(high, widest[1])) for low, high in (usual, strict))
    return usual, strict


def _interval(gains: Array, gain: float, error: float, units: int) -> tuple[float, float]:
    """Return (low, high) of resampled gains [resamples], widened as the module's docstring says."""
    normal = NormalDist().inv_cdf(1 - error / 2)
    widening = _student(normal, units - 1) / normal * math.sqrt((units + 1) / (units - 1))
    low, high = np.quantile(gains, (error / 2, 1 - error / 2))
    return gain - widening * max(gain - float(low), 0.0), gain + widening * max(float(high) - gain, 0.0)


def _student(normal: float, freedom: int) -> float:
    """Return the quantile of Student's t from the normal one (Abramowitz & Stegun 26.7.5; 1e-3 from 5 degrees up)."""
    x, v = normal, freedom
    return (
        x
        + (x**3 + x) / (4 * v)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * v**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * v**3)
    )


def _mirrorable_gains(sample: _Sample, seed: int) -> Array:
    """Return resampled gains that change their sign, and nothing else, when base and tuned are swapped."""
    mirrored = sample.mirrored()
    if sample.key == mirrored.key:
        gains = _resampled_gains(sample, seed)
        return np.concatenate((gains, -gains), axis=1)
    return _resampled_gains(sample, seed) if sample.key < mirrored.key else -_resampled_gains(mirrored, seed)


def _resampled_gains(sample: _Sample, seed: int) -> Array:
    """Return the gain under random weights of the units [2, resamples]: with half and with whole pseudo-rows."""
    pseudo = _pseudo_rows(sample)
    cells = np.vstack((sample.cells, pseudo, pseudo))
    shapes = np.append(sample.counts, [_PSEUDO_ROWS] * 4)  # the sum of k exponential weights is gamma(k)
    resamples = max(_FEWEST_RESAMPLES, min(_RESAMPLES, _MOST_DRAWS // len(shapes)))
    at_once = max(1, _DRAWS_AT_ONCE // len(shapes))
    random = np.random.default_rng(seed)
    sums = np.empty((2, resamples, 3))
    for start in range(0, resamples, at_once):
        drawn = random.standard_gamma(shapes, size=(min(at_once, resamples - start), len(shapes)))
        sums[0, start : start + at_once] = drawn[:, :-2] @ cells[:-2]
        sums[1, start : start + at_once] = drawn @ cells
    means = sums[:, :, 1:] / sums[:, :, :1]
    return np.array([[sample.gain(base, tuned) for base, tuned in row] for row in means.tolist()])


def _pseudo_rows(sample: _Sample) -> Array:
    """Return two cells [2, 3] of average weight, one as far above the mean difference as any unit is from it, one below.

    Where all units differ alike, nothing is known of what another one would do: as far as the scores range.
    """
    weight = float(sample.counts @ sample.cells[:, 0]) / sample.units
    mean = sample.tuned - sample.base
    farthest = np.abs(sample.cells[:, 2] - sample.cells[:, 1] - mean * sample.cells[:, 0]).max() / weight
    span = sample.highest - sample.lowest
    away = (farthest if farthest > 1e-9 * span else span) / 2
    above = (1.0, sample.base - away, sample.tuned + away)
    below = (1.0, sample.base + away, sample.tuned - away)
    return weight * np.array((above, below))


def _rows_needed(rows: int, gain: float, min_gain: float, interval: tuple[float, float]) -> int | None:
    """Return about how many rows make the interval exclude `min_gain`; its width falls with the root of the rows."""
    distance = abs(gain - min_gain)
    width = gain - interval[0] if gain > min_gain else interval[1] - gain
    if width**2 >= _HOPELESS * distance**2:
        return None
    return max(rows + 1, math.ceil(rows * (width / distance) ** 2))
