"""Is the tuned model better? The gain on paired rows, an interval around it, and one of three words."""

import math
from collections.abc import Hashable, Sequence, Sized
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.verdict import MAX_FAILED_SHARE, Comparison, too_many_failed
from tunesmith.scoring.bootstrap import Array, Interval, Sample, Transform, gain_intervals, min_units

Scores = Sequence[float] | npt.NDArray[Any]

_MAX_ROWS_FACTOR = 1_000  # a gain that takes a thousand times the rows to tell from min_gain is not told from it


def paired_verdict(
    base: Scores,
    tuned: Scores,
    *,
    groups: Sequence[Hashable] | None = None,
    min_gain: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    weights: Scores | None = None,
    transform: Transform | None = None,
    metric: str = "score",
) -> Comparison:
    """Judge whether the tuned system beats the base by more than `min_gain`.

    `better` if `low > min_gain`, `not_better` if `high <= min_gain`, else `cannot_tell`. The order of the rows does not
    matter, and swapping base and tuned mirrors the interval.

    An end of the interval that excludes `min_gain` must do so in a stricter interval too, whose end is given otherwise:
    an error of just 2.5 % would exceed 10 in 400 in four of ten batches of 400 comparisons, and the promise is about
    every batch. So the interval covers the true gain in about 95 % of comparisons, but in 98 % where it is `min_gain`.

    Fewer units than a sign test needs (6 at 95 %) exclude nothing: the interval is everything the scores could be.
    Where all rows differ by the same amount, also by nothing, the interval is not a point, because rows unlike those
    seen may still be there: about 2 in n. So 150 improved of 150 are `better`, and equal scores in every row are
    `cannot_tell` unless `min_gain` lies above that.

    Args:
        base, tuned: one score a row, higher is better; the same rows in the same order.
        groups: rows that share a value depend on one another and are resampled together.
        min_gain: what the gain must exceed.
        confidence: of the interval, 0.5 to 0.999; each end is wrong in at most half of the remainder.
        seed: of the resampling.
        weights: the score is the mean weighted with these, such as the tokens a row for token accuracy.
        transform: increasing; the score is this function of the mean, such as `lambda m: -math.exp(-m)` to judge the
            negated perplexity from log-likelihoods.
        metric: the name of the score.

    Raises:
        DataError: no rows, unequal lengths, or a value that is not a finite number.
        RecipeError: an impossible `min_gain`, `confidence` or `seed`.
    """
    _check_settings(min_gain, confidence, seed)
    before, after = _to_array(base, "base"), _to_array(tuned, "tuned")
    rows = len(before)
    row_weights = np.ones(rows) if weights is None else _to_array(weights, "weights")
    _check_rows(rows, tuned=after, weights=row_weights, groups=groups)
    _check_weights(row_weights)
    sample = Sample.from_rows(before, after, row_weights, groups, transform)
    gain = sample.gain(sample.base, sample.tuned)
    usual, strict = gain_intervals(sample, confidence, seed)
    low = strict.low if strict.low <= min_gain < usual.low else usual.low
    high = strict.high if usual.high <= min_gain < strict.high else usual.high
    settled = low > min_gain or high <= min_gain
    needed = None if settled else _units_needed(sample, gain, min_gain, strict, confidence)
    return Comparison(
        metric=metric,
        gain=gain,
        low=low,
        high=high,
        rows=rows,
        rows_needed=None if needed is None else math.ceil(rows * needed / sample.units),
        base=sample.score(sample.base),
        tuned=sample.score(sample.tuned),
        confidence=confidence,
        min_gain=min_gain,
        groups=sample.units,
        improved=int((after > before).sum()),
        worsened=int((after < before).sum()),
        groups_needed=needed,
    )


def rows_needed_text(comparison: Comparison) -> str:
    """Say how many rows, or groups of rows, would settle a verdict that has `groups_needed`."""
    groups, rows, needed = comparison.groups, comparison.rows, comparison.groups_needed
    assert needed is not None
    units = "rows" if groups == rows else "groups"
    text = f"about {needed:,} {units} would settle it"
    if groups < (fewest := min_units(comparison.confidence)):  # the spread of so few is a rough guess
        text = f"at least {fewest} {units} are needed to settle it" + (
            f", here about {needed:,}" if needed > fewest else ""
        )
    return text if groups == rows else f"{text}; more rows of the same {groups:,} groups would not"


def failed_text(comparison: Comparison) -> str:
    """Say how many rows failed, and what follows."""
    failed, rows = comparison.failed, comparison.failed + comparison.rows
    text = f"{failed:,} of {rows:,} rows failed on one side or both and were left out of both"
    return f"{text}; above {MAX_FAILED_SHARE:.0%} there is no verdict" if too_many_failed(failed, rows) else text


def reasons_of(comparison: Comparison) -> list[str]:
    """Return the reasons for a verdict: where the interval is, how many rows failed, and what would settle it."""
    where = {"better": "lies above", "not_better": "does not reach above", "cannot_tell": "holds"}[comparison.verdict]
    interval = f"[{comparison.low:+.4f}, {comparison.high:+.4f}]"
    reasons = [f"the interval of {comparison.metric} {interval} {where} min_gain {comparison.min_gain:g}"]
    if too_many_failed(comparison.failed, comparison.rows + comparison.failed):
        reasons = []  # the interval of the other rows does not count
    if comparison.failed:
        reasons.append(failed_text(comparison))
    if comparison.verdict == "cannot_tell" and comparison.groups_needed:
        reasons.append(rows_needed_text(comparison))
    return reasons


def is_non_inferiority(comparison: Comparison) -> bool:
    """Whether a verdict shows at most "not worse by more than `-min_gain`" (non-inferiority), and no improvement."""
    return comparison.min_gain < 0 and not (comparison.verdict == "better" and comparison.low > 0)


def describe_verdict(comparison: Comparison) -> str:
    """Return the verdict in words; with a negative `min_gain` it is about not being worse."""
    if not is_non_inferiority(comparison):
        return comparison.verdict.replace("_", " ")
    words = {"better": "not worse", "not_better": "worse", "cannot_tell": "cannot tell whether worse"}
    return f"{words[comparison.verdict]} by more than {-comparison.min_gain:g} (non-inferiority)"


def _units_needed(sample: Sample, gain: float, min_gain: float, interval: Interval, confidence: float) -> int | None:
    """Return about how many units make the interval exclude `min_gain`; its width falls with their root.

    The interval of fewer units than a sign test needs says nothing, so the spread of the units themselves is used.
    """
    distance, fewest = abs(gain - min_gain), min_units(confidence)
    if sample.units < fewest:
        width = NormalDist().inv_cdf((1 + confidence) / 2) * sample.standard_error(gain)
    else:
        width = gain - interval.low if gain > min_gain else interval.high - gain
    if distance == 0 or width**2 >= _MAX_ROWS_FACTOR * distance**2:
        return None
    return max(fewest, sample.units + 1, math.ceil(sample.units * (width / distance) ** 2))


def _to_array(values: Scores, name: str) -> Array:
    """Return values as an array [rows]; raise DataError at the first that is not a finite number."""
    for index, value in enumerate(values):
        if not isinstance(value, (int, float, np.number, np.bool_)) or not math.isfinite(value):
            raise DataError(
                f"is {value!r}, not a finite number",
                where=f"{name}[{index}]",
                hint="leave out, for both systems, a row that was not scored, or give it the worst score",
            )
    return np.asarray(values, dtype=np.float64)


def _check_rows(rows: int, **others: Sized | None) -> None:
    """Raise DataError unless there are rows and all inputs have one value a row."""
    if rows == 0:
        raise DataError("there are no rows to compare", hint="the test split is empty, or no row was scored")
    for name, values in others.items():
        if values is not None and len(values) != rows:
            raise DataError(
                f"base has {rows} rows, {name} has {len(values)}",
                hint="both systems answer the same rows in the same order",
            )


def _check_weights(weights: Array) -> None:
    """Raise DataError unless weights can be averaged with."""
    if weights.min() < 0:
        raise DataError("is negative", where=f"weights[{int(weights.argmin())}]", hint="weights count, such as tokens")
    if not weights.any():
        raise DataError("all weights are zero", hint="no row has a token to score")


def _check_settings(min_gain: float, confidence: float, seed: int) -> None:
    """Raise RecipeError for settings that have no meaning."""
    if not math.isfinite(min_gain):
        raise RecipeError(f"min_gain is {min_gain}", hint="give a finite number in the unit of the score")
    if not 0.5 <= confidence <= 0.999:
        raise RecipeError(f"confidence is {confidence}", hint="give a number from 0.5 to 0.999, such as 0.95")
    if seed < 0:
        raise RecipeError(f"seed is {seed}", hint="give a whole number from 0 up")
