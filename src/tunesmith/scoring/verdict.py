"""The paired comparison of two systems: gain, confidence interval and verdict, and their descriptions in words."""

import math
from collections.abc import Hashable, Sequence, Sized
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.verdict import MAX_FAILED_SHARE, Comparison
from tunesmith.scoring.bootstrap import (
    STRICT_ERROR_SHARE,
    Array,
    Interval,
    Sample,
    Transform,
    gain_intervals,
    min_units,
)
from tunesmith.scoring.seeds import ONE_SEED, SeedSpread

Scores = Sequence[float] | npt.NDArray[Any]

_MAX_ROWS_FACTOR = 1_000  # no estimate is given if the verdict would need more than this times the rows

MAX_CONFIDENCE = 0.999  # above it `paired_verdict` gives no interval


def corrected_confidence(confidence: float, intervals: int) -> float:
    """Return the confidence that each interval needs so that all of them hold together (Bonferroni).

    Dunn 1961, "Multiple Comparisons among Means", JASA 56: the probability that any of the intervals fails is at most
    the sum of their probabilities, even if they depend on each other. Here they do: all models answer the same prompts.
    """
    return 1 - (1 - confidence) / intervals


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
    spread: SeedSpread = ONE_SEED,
) -> Comparison:
    """Compare two systems on the same rows, and decide whether the tuned one is better by more than `min_gain`.

    The verdict is `better` if `low > min_gain`, `not_better` if `high <= min_gain`, else `cannot_tell`. It does not
    depend on the order of the rows. Swapping base and tuned mirrors the interval.

    An end of the interval excludes `min_gain` only if the end of a stricter interval (bootstrap.py) excludes it, too;
    otherwise the stricter end is returned. The reason: in every 400 comparisons of equal models, at most 10 may be
    called better, and with an error of exactly 2.5 % this would fail in 40 % of such batches. So the interval covers
    the true gain in about 95 % of comparisons, and in about 98 % if the true gain is `min_gain`.

    Fewer units than a sign test needs (6 at 95 %) exclude nothing; the interval is then the range of possible gains.
    If all rows have the same difference, the interval is still not a point, because about 2 in n unseen rows may
    differ. So 150 improved of 150 rows are `better`, and equal scores in all rows are `cannot_tell` unless `min_gain`
    is above the interval.

    Args:
        base, tuned: one score per row, higher is better, in the same order of rows.
        groups: rows with the same value are not independent and are resampled together.
        min_gain: the gain must exceed this.
        confidence: level of the interval, 0.5 to 0.999. Each end is wrong in at most half of the rest.
        seed: seed of the resampling.
        weights: weights of the mean, such as the number of tokens per row for token accuracy.
        transform: increasing function from the mean to the score, such as `lambda m: -math.exp(-m)` for the negated
            perplexity from log-likelihoods.
        metric: name of the score.
        spread: how much the gain varies with the seed of training, if `tuned` is the mean over several seeds; see
            `replicated_verdict`.

    Raises:
        DataError: no rows, unequal lengths, or a value that is not a finite number.
        RecipeError: `min_gain`, `confidence` or `seed` is out of range.
    """
    _check_settings(min_gain, confidence, seed)
    before, after = _to_array(base, "base"), _to_array(tuned, "tuned")
    rows = len(before)
    row_weights = np.ones(rows) if weights is None else _to_array(weights, "weights")
    _check_rows(rows, tuned=after, weights=row_weights, groups=groups)
    _check_weights(row_weights)
    sample = Sample.from_rows(before, after, row_weights, groups, transform)
    gain = sample.gain(sample.base, sample.tuned)
    usual, strict = gain_intervals(sample, confidence, seed, spread.half_width)
    low = strict.low if strict.low <= min_gain < usual.low else usual.low
    high = strict.high if usual.high <= min_gain < strict.high else usual.high
    settled = low > min_gain or high <= min_gain
    needed = None if settled else _units_needed(sample, gain, min_gain, strict, confidence, spread)
    seeds_needed = None if settled or needed else _seeds_needed(gain, min_gain, strict, confidence, spread)
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
        seeds_needed=seeds_needed,
    )


def needed_text(comparison: Comparison) -> str | None:
    """Return how many rows, groups of rows or seeds would settle a verdict; None if no estimate is given."""
    groups, rows, needed = comparison.groups, comparison.rows, comparison.groups_needed
    if comparison.seeds_needed is not None:
        return f"about {comparison.seeds_needed:,} seeds would settle it (`replicates`); more rows would not"
    if needed is None:
        return None
    units = "rows" if groups == rows else "groups"
    text = f"about {needed:,} {units} would settle it"
    if groups < (fewest := min_units(comparison.confidence)):  # the estimate from so few units is rough
        estimate = f", here about {needed:,}" if needed > fewest else ""
        text = f"at least {fewest} {units} are needed to settle it{estimate}"
    return text if groups == rows else f"{text}; more rows of the same {groups:,} groups would not"


def failed_text(comparison: Comparison) -> str:
    """Return how many rows failed, and the consequence."""
    failed, rows = comparison.failed, comparison.failed + comparison.rows
    text = f"{failed:,} of {rows:,} rows failed for base or tuned and were left out for both"
    return f"{text}; above {MAX_FAILED_SHARE:.0%} there is no verdict" if comparison.too_many_failed else text


def reasons_of(comparison: Comparison) -> list[str]:
    """Return the reasons for a verdict: its interval, the failed rows, and the number of rows that would settle it."""
    position = {"better": "is above", "not_better": "is not above", "cannot_tell": "contains"}[comparison.verdict]
    interval = f"[{comparison.low:+.4f}, {comparison.high:+.4f}]"
    reasons = [f"the interval of {comparison.metric} {interval} {position} min_gain {comparison.min_gain:g}"]
    if comparison.too_many_failed:
        reasons = []  # the interval of the other rows does not count
    if comparison.failed:
        reasons.append(failed_text(comparison))
    if comparison.verdict == "cannot_tell" and (needed := needed_text(comparison)):
        reasons.append(needed)
    return reasons


def is_non_inferiority(comparison: Comparison) -> bool:
    """Return whether a verdict is about "not worse by more than `-min_gain`" (non-inferiority), not an improvement."""
    return comparison.min_gain < 0 and not (comparison.verdict == "better" and comparison.low > 0)


def describe_verdict(comparison: Comparison) -> str:
    """Return the verdict in words; with a negative `min_gain`, those of non-inferiority."""
    if not is_non_inferiority(comparison):
        return comparison.verdict.replace("_", " ")
    words = {"better": "not worse", "not_better": "worse", "cannot_tell": "cannot tell whether worse"}
    return f"{words[comparison.verdict]} by more than {-comparison.min_gain:g} (non-inferiority)"


def _units_needed(
    sample: Sample, gain: float, min_gain: float, interval: Interval, confidence: float, spread: SeedSpread
) -> int | None:
    """Estimate the number of units with which the interval excludes `min_gain`: its width falls with their square root.

    The part of the width that is due to the seeds does not fall. With fewer units than a sign test
    needs, the interval is no estimate of the noise, so the standard error is used.
    """
    distance, fewest = abs(gain - min_gain), min_units(confidence)
    if sample.units < fewest:
        width = NormalDist().inv_cdf((1 + confidence) / 2) * sample.standard_error(gain)
    else:
        of_seeds = spread.half_width(STRICT_ERROR_SHARE * (1 - confidence))
        width = _rest(gain - interval.low if gain > min_gain else interval.high - gain, of_seeds)
        distance = _rest(distance, of_seeds)
    if distance == 0 or width**2 >= _MAX_ROWS_FACTOR * distance**2:
        return None
    return max(fewest, sample.units + 1, math.ceil(sample.units * (width / distance) ** 2))


def _seeds_needed(
    gain: float, min_gain: float, interval: Interval, confidence: float, spread: SeedSpread
) -> int | None:
    """Estimate the number of seeds with which the interval excludes `min_gain`, if the rows stay as they are."""
    error = STRICT_ERROR_SHARE * (1 - confidence)
    width = gain - interval.low if gain > min_gain else interval.high - gain
    of_rows = _rest(width, spread.half_width(error))
    return spread.seeds_needed(_rest(abs(gain - min_gain), of_rows), error) if spread.variance else None


def _rest(width: float, part: float) -> float:
    """Return the half-width that gives `width` together with an independent `part`; 0 if the part is larger."""
    return math.sqrt(max(0.0, width**2 - part**2))


def _to_array(values: Scores, name: str) -> Array:
    """Convert values to an array [rows]; raise DataError for a value that is not a finite number."""
    for index, value in enumerate(values):
        if not isinstance(value, (int, float, np.number, np.bool_)) or not math.isfinite(value):
            message, where = f"is {value!r}, not a finite number", f"{name}[{index}]"
            hint = "give a row without a score the worst score, or leave it out for both systems"
            raise DataError(message, where=where, hint=hint, code="not-a-number")
    return np.asarray(values, dtype=np.float64)


def _check_rows(rows: int, **others: Sized | None) -> None:
    """Raise DataError unless there are rows and all inputs have one value per row."""
    if rows == 0:
        hint = "check that the test split is not empty and that its rows have scores"
        raise DataError("there are no rows to compare", hint=hint, code="no-rows")
    for name, values in others.items():
        if values is not None and len(values) != rows:
            hint = "give both systems the same rows in the same order"
            raise DataError(f"base has {rows} rows, {name} has {len(values)}", hint=hint, code="unequal-lengths")


def _check_weights(weights: Array) -> None:
    """Raise DataError for a negative weight, or if all weights are 0."""
    if weights.min() < 0:
        where, hint = f"weights[{int(weights.argmin())}]", "give counts as weights, such as the tokens of a row"
        raise DataError("is negative", where=where, hint=hint, code="bad-weight")
    if not weights.any():
        raise DataError("all weights are 0", hint="check that the rows have tokens to score", code="bad-weight")


def _check_settings(min_gain: float, confidence: float, seed: int) -> None:
    """Raise RecipeError for a setting that is out of range."""
    for name, value, is_valid, rule, hint in (
        ("min_gain", min_gain, math.isfinite(min_gain), "a finite number", "give it in the unit of the score"),
        ("confidence", confidence, 0.5 <= confidence <= 0.999, "between 0.5 and 0.999", "give a share such as 0.95"),
        ("seed", seed, seed >= 0, "0 or more", "give an integer of 0 or more"),
    ):
        if not is_valid:
            raise RecipeError(f"{name} is {value}, not {rule}", hint=hint, code="wrong-value")
