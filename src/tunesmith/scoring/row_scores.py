"""Compare two systems' rows of `scores.jsonl` in one metric.

A row is {"id", "group", METRIC: value, ...}. A row whose answer failed has `failed`, the reason, and no score: it is
left out of both systems and counted, because a failure for lack of memory or positions is not a wrong answer. If more
than `MAX_FAILED_SHARE` of the rows failed, the rest no longer represents the test set, and there is no verdict.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from operator import mul
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.verdict import Comparison, GroupChange, Grouping, too_many_failed
from tunesmith.scoring.metric import Likelihood
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.verdict import paired_verdict

Scores = Sequence[Mapping[str, Any]]

MAX_GROUPS_LISTED = 10


class VerdictSettings(NamedTuple):
    """What a comparison asks for, as `paired_verdict` takes it."""

    min_gain: float
    confidence: float
    seed: int


def compare(
    metric: str,
    base: Scores,
    tuned: Scores,
    *,
    lower_is_better: bool,
    settings: VerdictSettings,
    groups: Sequence[Hashable] | None = None,
    by_row: bool = False,
) -> Comparison:
    """Judge paired rows in one metric, so that a positive gain is better whichever way the metric counts.

    Args:
        by_row: if rows are grouped, also return the interval that would count each row as independent.

    Raises:
        DataError: no row was answered by both systems, or a score is not a finite number.
    """
    kept = compared_rows(metric, base, tuned)
    if not kept:
        raise DataError("no row was answered by both models", hint="see `failed` in scores.jsonl")
    before, after = [base[row] for row in kept], [tuned[row] for row in kept]
    sign = -1.0 if lower_is_better else 1.0
    likelihood = likelihood_of(metric, before)
    found = paired_verdict(
        _column(metric, before, lower_is_better),
        _column(metric, after, lower_is_better),
        groups=None if groups is None else [groups[row] for row in kept],
        **settings._asdict(),
        weights=_weights(metric, before),
        transform=(lambda mean: sign * likelihood.value(mean)) if likelihood and likelihood.transform_mean else None,
        metric=metric,
    )
    failed = len(base) - len(kept)
    found = replace(
        found, base=sign * found.base, tuned=sign * found.tuned, higher_is_better=not lower_is_better, failed=failed
    )
    if by_row and found.groups < found.rows:
        alone = compare(metric, base, tuned, lower_is_better=lower_is_better, settings=settings)
        found = replace(found, by_row=(alone.low, alone.high))
    if too_many_failed(failed, len(base)):
        return replace(found, rows_needed=None, groups_needed=None)
    return found


def compared_rows(metric: str, base: Scores, tuned: Scores) -> list[int]:
    """Return the indices of the rows that a metric compares: all for likelihoods, else those that no system failed."""
    if likelihood_of(metric, base):
        return list(range(len(base)))
    return [
        row for row, pair in enumerate(zip(base, tuned, strict=True)) if not any(side.get("failed") for side in pair)
    ]


def likelihood_of(metric: str, rows: Scores) -> Likelihood | None:
    """Return how a metric follows from the rows' likelihoods; None if it is given in the rows."""
    known = find_metric(metric)
    return known.likelihood if known and rows and metric not in rows[0] else None


def group_changes(
    metric: str, base: Scores, tuned: Scores, groups: Sequence[str], *, by: str | None, lower_is_better: bool
) -> Grouping:
    """Return how groups of rows changed in a metric, and those that fell most; `by` is the column that they share."""
    members: dict[str, list[int]] = {}
    kept = compared_rows(metric, base, tuned)
    for row in kept:
        members.setdefault(groups[row], []).append(row)
    moved = [_group_change(metric, name, rows, base, tuned, lower_is_better) for name, rows in members.items()]
    fell = sorted(
        (change for change in moved if change.gain < 0), key=lambda change: (change.gain, -change.rows, change.group)
    )
    return Grouping(
        by=by,
        groups=len(moved),
        rows=len(kept),
        improved=sum(change.gain > 0 for change in moved),
        worsened=len(fell),
        fell=tuple(fell[:MAX_GROUPS_LISTED]),
    )


def _group_change(metric: str, name: str, rows: Sequence[int], base: Scores, tuned: Scores, lower: bool) -> GroupChange:
    """Return the mean of a metric before and after over the rows of one group."""
    weights = _weights(metric, [base[row] for row in rows]) or [1.0] * len(rows)
    before, after = (
        math.fsum(map(mul, weights, _column(metric, [side[row] for row in rows], lower))) / math.fsum(weights)
        for side in (base, tuned)
    )
    sign = -1.0 if lower else 1.0
    if likelihood := likelihood_of(metric, base):
        before, after = sign * likelihood.value(before), sign * likelihood.value(after)
    return GroupChange(name, len(rows), base=sign * before, tuned=sign * after, gain=after - before)


def _weights(metric: str, rows: Scores) -> list[float] | None:
    return [row["tokens"] for row in rows] if likelihood_of(metric, rows) else None


def _column(metric: str, rows: Scores, lower: bool) -> list[float]:
    """Return one value a row, higher is better: the mean over its tokens if the metric follows from likelihoods."""
    if likelihood := likelihood_of(metric, rows):
        return [likelihood.mean(row) for row in rows]
    return [-row[metric] if lower else row[metric] for row in rows]
