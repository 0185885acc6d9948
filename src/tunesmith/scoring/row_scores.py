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
from tunesmith.scoring.metric import Likelihood
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.verdict import Verdict, paired_verdict

Scores = Sequence[Mapping[str, Any]]

MAX_FAILED_SHARE = 0.05
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
) -> Verdict:
    """Judge paired rows in one metric, so that a positive gain is better whichever way the metric counts.

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
    )
    if too_many_failed(len(base) - len(kept), len(base)):
        return replace(found, verdict="cannot_tell", rows_needed=None, groups_needed=None)
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


def too_many_failed(failed: int, rows: int) -> bool:
    """Whether so many rows failed that the others do not represent the test set."""
    return failed > MAX_FAILED_SHARE * rows


def failed_text(failed: int, rows: int) -> str:
    """Say how many rows failed, and what follows."""
    text = f"{failed:,} of {rows:,} rows failed on one side or both and were left out of both"
    return f"{text}; above {MAX_FAILED_SHARE:.0%} there is no verdict" if too_many_failed(failed, rows) else text


def group_changes(
    metric: str, base: Scores, tuned: Scores, groups: Sequence[str], *, lower_is_better: bool
) -> dict[str, Any]:
    """Return {groups, rows, improved, worsened, fell}: how the groups moved, and those that fell most.

    `fell` holds {group, rows, base, tuned, gain} with means over the group's rows; `gain` is improvement.
    """
    members: dict[str, list[int]] = {}
    kept = compared_rows(metric, base, tuned)
    for row in kept:
        members.setdefault(groups[row], []).append(row)
    moved = [_group_change(metric, name, rows, base, tuned, lower_is_better) for name, rows in members.items()]
    fell = sorted((one for one in moved if one["gain"] < 0), key=lambda one: (one["gain"], -one["rows"], one["group"]))
    return {
        "groups": len(moved),
        "rows": len(kept),
        "improved": sum(one["gain"] > 0 for one in moved),
        "worsened": len(fell),
        "fell": fell[:MAX_GROUPS_LISTED],
    }


def _group_change(
    metric: str, name: str, rows: Sequence[int], base: Scores, tuned: Scores, lower: bool
) -> dict[str, Any]:
    """Return the mean of a metric before and after over the rows of one group."""
    weights = _weights(metric, [base[row] for row in rows]) or [1.0] * len(rows)
    before, after = (
        math.fsum(map(mul, weights, _column(metric, [side[row] for row in rows], lower))) / math.fsum(weights)
        for side in (base, tuned)
    )
    sign = -1.0 if lower else 1.0
    if likelihood := likelihood_of(metric, base):
        before, after = sign * likelihood.value(before), sign * likelihood.value(after)
    return {"group": name, "rows": len(rows), "base": sign * before, "tuned": sign * after, "gain": after - before}


def _weights(metric: str, rows: Scores) -> list[float] | None:
    return [row["tokens"] for row in rows] if likelihood_of(metric, rows) else None


def _column(metric: str, rows: Scores, lower: bool) -> list[float]:
    """Return one value a row, higher is better: the mean over its tokens if the metric follows from likelihoods."""
    if likelihood := likelihood_of(metric, rows):
        return [likelihood.mean(row) for row in rows]
    return [-row[metric] if lower else row[metric] for row in rows]
