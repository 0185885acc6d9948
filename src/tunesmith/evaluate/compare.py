"""Scores of base and tuned -> verdict.json: the primary metric decides, guards can refuse."""

from collections.abc import Collection, Sequence
from typing import Any

from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics, is_lower_better, likelihood_metrics
from tunesmith.scoring.row_scores import Scores, VerdictSettings, compare, failed_text, group_changes, too_many_failed
from tunesmith.scoring.verdict import Verdict, rows_needed_text


def compare_models(
    recipe: Recipe, base: Scores, tuned: Scores, *, groups: Sequence[str], lower_is_better: Collection[str] = ()
) -> dict[str, Any]:
    """Return the content of verdict.json, without health and digests.

    Every gain is counted so that more is better, also of metrics of which lower is better: ours, and `lower_is_better`.
    """
    settings = recipe.evaluate
    min_gain = recipe.promote.min_gain if recipe.promote else 0.0
    names = [*answer_metrics(settings.metrics), *likelihood_metrics(settings.metrics)]
    lower = {*(name for name in names if is_lower_better(name)), *lower_is_better}
    metrics = {}
    for name in names:
        least = min_gain if name == settings.primary else 0.0
        found = compare_metric(recipe, name, base, tuned, groups=groups, min_gain=least, lower_is_better=name in lower)
        metrics[name] = _metric_entry(name, found, name in lower)
    primary = {**metrics[settings.primary], "min_gain": min_gain}
    primary["failed"] = len(base) - primary["rows"]
    grouping, name = None, settings.primary
    if primary["groups"] < primary["rows"]:
        alone = compare_metric(recipe, name, base, tuned, groups=None, min_gain=min_gain, lower_is_better=name in lower)
        primary["by_row"] = {"low": alone.low, "high": alone.high}
        moved = group_changes(name, base, tuned, groups, lower_is_better=name in lower)
        grouping = {"by": recipe.data.split.by, **moved}
    guards = [
        {"metric": g.metric, "max_drop": g.max_drop, **{k: metrics[g.metric][k] for k in ("gain", "low", "high")}}
        for g in settings.guards
    ]
    for guard in guards:
        failed = len(base) - metrics[guard["metric"]]["rows"]
        guard["passed"] = guard["low"] >= -guard["max_drop"] and not too_many_failed(failed, len(base))
    return {
        "verdict": primary.pop("verdict"),
        "primary": primary,
        "metrics": {name: {k: v for k, v in entry.items() if k != "verdict"} for name, entry in metrics.items()},
        "guards": guards,
        "grouping": grouping,
        "reasons": _reasons(metrics[settings.primary]["verdict"], primary, guards, rows=len(base)),
    }


def compare_metric(
    recipe: Recipe,
    metric: str,
    base: Scores,
    tuned: Scores,
    *,
    groups: Sequence[str] | None,
    min_gain: float,
    lower_is_better: bool,
) -> Verdict:
    """Compare two models' rows in one metric, with the recipe's confidence and seed."""
    settings = VerdictSettings(min_gain, recipe.evaluate.confidence, recipe.seed)
    return compare(metric, base, tuned, lower_is_better=lower_is_better, groups=groups, settings=settings)


def _metric_entry(name: str, found: Verdict, lower: bool) -> dict[str, Any]:
    sign = -1.0 if lower else 1.0
    return {
        "verdict": found.verdict,
        "metric": name,
        "base": sign * found.base,
        "tuned": sign * found.tuned,
        "gain": found.gain,
        "low": found.low,
        "high": found.high,
        "confidence": found.confidence,
        "rows": found.rows,
        "groups": found.groups,
        "rows_needed": found.rows_needed,
        "groups_needed": found.groups_needed,
        "higher_is_better": not lower,
    }


def _reasons(verdict: str, primary: dict[str, Any], guards: list[dict[str, Any]], *, rows: int) -> list[str]:
    interval = f"[{primary['low']:+.4f}, {primary['high']:+.4f}]"
    against = f"min_gain {primary['min_gain']:g}"
    reasons = {
        "better": [f"the interval of {primary['metric']} {interval} lies above {against}"],
        "not_better": [f"the interval of {primary['metric']} {interval} does not reach above {against}"],
        "cannot_tell": [f"the interval of {primary['metric']} {interval} holds {against}"],
    }[verdict]
    failed = primary["failed"]
    if too_many_failed(failed, rows):
        reasons = []  # wherever the interval of the others lies
    if failed:
        reasons.append(failed_text(failed, rows))
    if verdict == "cannot_tell" and primary["rows_needed"]:
        reasons.append(rows_needed_text(primary))
    return reasons + [
        f"guard: {g['metric']} may have fallen by {-g['low']:.4f}, more than {g['max_drop']:g}"
        for g in guards
        if not g["passed"]
    ]
