"""Scores of base and tuned -> verdict.json: the primary metric decides, guards can refuse."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import LIKELIHOOD, expand
from tunesmith.scoring.verdict import Verdict, paired_verdict

Scores = Sequence[dict[str, Any]]


def judge(
    recipe: Recipe, base: Scores, tuned: Scores, *, groups: Sequence[str], lower_is_better: Collection[str] = ()
) -> dict[str, Any]:
    """Return the content of verdict.json, without health and digests.

    Every gain is counted so that more is better, also where a lower value is: perplexity, and `lower_is_better`.
    """
    lower = {"perplexity", *lower_is_better}
    settings = recipe.evaluate
    min_gain = recipe.promote.min_gain if recipe.promote else 0.0
    names = [
        *expand([m for m in settings.metrics if m not in LIKELIHOOD]),
        *(m for m in settings.metrics if m in LIKELIHOOD),
    ]
    metrics = {}
    for name in names:
        least = min_gain if name == settings.primary else 0.0
        metrics[name] = _entry(name, compare(name, base, tuned, groups, least, recipe, name in lower), name in lower)
    primary = {**metrics[settings.primary], "min_gain": min_gain}
    guards = [
        {"metric": g.metric, "max_drop": g.max_drop, **{k: metrics[g.metric][k] for k in ("gain", "low", "high")}}
        for g in settings.guards
    ]
    for guard in guards:
        guard["passed"] = guard["low"] >= -guard["max_drop"]
    return {
        "verdict": primary.pop("verdict"),
        "primary": primary,
        "metrics": {name: {k: v for k, v in entry.items() if k != "verdict"} for name, entry in metrics.items()},
        "guards": guards,
        "reasons": _reasons(metrics[settings.primary]["verdict"], primary, guards),
    }


def compare(
    name: str, base: Scores, tuned: Scores, groups: Sequence[str], least: float, recipe: Recipe, lower: bool
) -> Verdict:
    """Compare base and tuned in one metric, so that a positive gain is better also where a lower value is."""

    def column(lines: Scores) -> list[float]:
        if name == "perplexity":
            return [line["log_likelihood"] / line["tokens"] for line in lines]
        if name == "token_accuracy":
            return [line["correct"] / line["tokens"] for line in lines]
        return [-line[name] if lower else line[name] for line in lines]

    by_token = name in LIKELIHOOD
    return paired_verdict(
        column(base),
        column(tuned),
        groups=list(groups),
        min_gain=least,
        confidence=recipe.evaluate.confidence,
        seed=recipe.seed,
        weights=[line["tokens"] for line in base] if by_token else None,
        transform=(lambda mean: -math.exp(-mean)) if name == "perplexity" else None,
    )


def _entry(name: str, found: Verdict, lower: bool) -> dict[str, Any]:
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
        "rows_needed": found.rows_needed,
        "higher_is_better": not lower,
    }


def _reasons(verdict: str, primary: dict[str, Any], guards: list[dict[str, Any]]) -> list[str]:
    interval = f"[{primary['low']:+.4f}, {primary['high']:+.4f}]"
    against = f"min_gain {primary['min_gain']:g}"
    reasons = {
        "better": [f"the interval of {primary['metric']} {interval} lies above {against}"],
        "not_better": [f"the interval of {primary['metric']} {interval} does not reach above {against}"],
        "cannot_tell": [f"the interval of {primary['metric']} {interval} holds {against}"],
    }[verdict]
    if verdict == "cannot_tell" and primary["rows_needed"]:
        reasons.append(f"about {primary['rows_needed']} rows would settle it")
    return reasons + [
        f"guard: {g['metric']} may have fallen by {-g['low']:.4f}, more than {g['max_drop']:g}"
        for g in guards
        if not g["passed"]
    ]
