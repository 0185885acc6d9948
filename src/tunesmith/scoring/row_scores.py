"""Compare the rows of two systems' `scores.jsonl` on one metric.

A row is {"id", "group", METRIC: value, ...}. If an answer failed, its row has the reason in `failed` and no score. The
row is then left out for both systems and counted, because a lack of memory or positions is not a wrong answer. If more
than `MAX_FAILED_SHARE` of the rows failed, the others do not represent the test set, and there is no verdict.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import mul
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.verdict import Comparison, GroupChange, Grouping
from tunesmith.scoring.metric import Likelihood
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.replicates import replicated_verdict
from tunesmith.scoring.verdict import paired_verdict

Scores = Sequence[Mapping[str, Any]]

MAX_GROUPS_LISTED = 10


class VerdictSettings(NamedTuple):
    """Arguments of `paired_verdict` that apply to every metric."""

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
    by_seed: Mapping[int, Scores] | None = None,
) -> Comparison:
    """Compare paired rows on one metric. A positive gain is an improvement, even if lower values are better.

    Args:
        by_row: if rows are grouped, also compute the interval for independent rows.
        by_seed: the rows of each seed, if several were trained and `tuned` has their means (`mean_rows`).

    Raises:
        DataError: no row was answered by both systems, or a score is not a finite number.
    """
    rows = compared_rows(metric, base, tuned)
    if not rows:
        hint = "see `failed` in scores.jsonl for the reasons"
        raise DataError("both models answered no row in common", hint=hint, code="no-rows")
    before, after = [base[row] for row in rows], [tuned[row] for row in rows]
    sign = -1.0 if lower_is_better else 1.0
    likelihood = likelihood_of(metric, before)
    column = partial(_column, metric, lower=lower_is_better)
    tuned_columns = {seed: column([scores[row] for row in rows]) for seed, scores in (by_seed or {}).items()}
    decide = (
        partial(replicated_verdict, column(before), tuned_columns)
        if tuned_columns
        else partial(paired_verdict, column(before), column(after))
    )
    comparison = decide(
        groups=None if groups is None else [groups[row] for row in rows],
        weights=_weights(metric, before),
        transform=(lambda mean: sign * likelihood.value(mean)) if likelihood and likelihood.transform_mean else None,
        metric=metric,
        **settings._asdict(),
    )
    before_score, after_score, failed = sign * comparison.base, sign * comparison.tuned, len(base) - len(rows)
    comparison = replace(
        comparison, base=before_score, tuned=after_score, higher_is_better=not lower_is_better, failed=failed,
        seeds=tuple(replace(seed, tuned=sign * seed.tuned) for seed in comparison.seeds),
    )  # fmt: skip
    if by_row and comparison.groups < comparison.rows:
        ungrouped = compare(metric, base, tuned, lower_is_better=lower_is_better, settings=settings, by_seed=by_seed)
        comparison = replace(comparison, by_row=(ungrouped.low, ungrouped.high))
    if comparison.too_many_failed:
        return replace(comparison, rows_needed=None, groups_needed=None, seeds_needed=None)
    return comparison


def compared_rows(metric: str, base: Scores, tuned: Scores) -> list[int]:
    """Return the indices of the rows to compare: all for a likelihood metric, else those that both systems answered."""
    if likelihood_of(metric, base):
        return list(range(len(base)))
    pairs = enumerate(zip(base, tuned, strict=True))
    return [row for row, pair in pairs if not any(side.get("failed") for side in pair)]


def likelihood_of(metric: str, rows: Scores) -> Likelihood | None:
    """Return how to compute a metric from the rows' likelihoods; None if the rows have its values."""
    built_in = find_metric(metric)
    return built_in.likelihood if built_in and rows and metric not in rows[0] else None


def group_changes(
    metric: str, base: Scores, tuned: Scores, groups: Sequence[str], *, by: str | None, lower_is_better: bool
) -> Grouping:
    """Return how groups of rows changed on a metric, with the worst changes; `by` is the column of the groups."""
    members: dict[str, list[int]] = {}
    compared = compared_rows(metric, base, tuned)
    for row in compared:
        members.setdefault(groups[row], []).append(row)
    changes = [_group_change(metric, name, rows, base, tuned, lower_is_better) for name, rows in members.items()]
    fell = [change for change in changes if change.gain < 0]
    fell.sort(key=lambda change: (change.gain, -change.rows, change.group))
    improved, worst = sum(change.gain > 0 for change in changes), tuple(fell[:MAX_GROUPS_LISTED])
    return Grouping(by=by, groups=len(changes), rows=len(compared), improved=improved, worsened=len(fell), fell=worst)


def _group_change(metric: str, name: str, rows: Sequence[int], base: Scores, tuned: Scores, lower: bool) -> GroupChange:
    """Return the change of a metric's mean over the rows of a group."""
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
    """Return one value per row, higher is better; for a likelihood metric, the mean over the row's tokens."""
    if likelihood := likelihood_of(metric, rows):
        return [likelihood.mean(row) for row in rows]
    return [-row[metric] if lower else row[metric] for row in rows]
