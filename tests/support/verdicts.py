"""Make verdicts that do not contradict themselves, as `evaluate` writes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.core.verdict import Comparison, Grouping, Guard, SeedGain, SetResult, Verdict


def comparison(metric: str = "rougeL", **changes: Any) -> Comparison:
    """Return a gain of 0.05 from 0.4, with the interval 0.02 to 0.08, on 200 rows."""
    values = {"base": 0.40, "tuned": 0.45, "gain": 0.05, "low": 0.02, "high": 0.08, "confidence": 0.95, "rows": 200}
    values |= changes
    return Comparison(metric, **{"groups": values["rows"], **values})


def of_seeds(*lows: float, **changes: Any) -> Comparison:
    """Return a comparison of several seeds, each with a gain of 0.05 and the low end of its interval, from seed 3."""
    seeds = tuple(SeedGain(seed, 0.45, 0.05, low, 0.08) for seed, low in enumerate(lows, 3))
    return comparison(**{"seeds": seeds, **changes})


def verdict(
    primary: Comparison | None = None,
    *others: Comparison,
    guards: Sequence[tuple[str, float]] = (),
    grouping: Grouping | None = None,
    reasons: Sequence[str] = (),
    **more: Any,
) -> Verdict:
    """Return the verdict of a primary metric and others; a guard is (metric, max_drop)."""
    primary = primary or comparison()
    metrics = {one.metric: one for one in (primary, *others)}
    made = tuple(Guard(metrics[metric], max_drop) for metric, max_drop in guards)
    return Verdict(primary, metrics, made, grouping, tuple(reasons), **more)


def with_set(
    found: Verdict, name: str, change: Comparison, max_drop: float, *others: Comparison, has_answers: bool = True
) -> Verdict:
    """Return a verdict with a further held-out set, on which `change` is guarded."""
    rows = change.rows + change.failed
    health = {"base": {"rows": rows}} if has_answers else {}
    result = SetResult(rows, {one.metric: one for one in (change, *others)}, health)
    guards = (*found.guards, Guard(change, max_drop, name))
    return replace(found, guards=guards, also={**found.also, name: result})
