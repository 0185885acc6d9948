"""The gate: open for a whole verdict that says `better`, closed for everything else, forced with a reason only."""

import math
from typing import Any

import pytest

from tunesmith.core.errors import RecipeError, VerdictRefused
from tunesmith.registry.gate import check_gate, refusal_reasons

PRIMARY = {
    "metric": "rougeL",
    "base": 0.40,
    "tuned": 0.45,
    "gain": 0.05,
    "low": 0.02,
    "high": 0.08,
    "confidence": 0.95,
    "rows": 200,
}
GUARD = {"metric": "exact_match", "base": 0.5, "tuned": 0.5, "max_drop": 0.01, "passed": True}


def verdict(**changes: Any) -> dict[str, Any]:
    """Return a verdict that passes, with changes."""
    return {"verdict": "better", "primary": dict(PRIMARY), "guards": [dict(GUARD)], "reasons": [], **changes}


def primary(**changes: Any) -> dict[str, Any]:
    """Return a verdict that passes but for changes of what was measured."""
    return verdict(primary={**PRIMARY, **changes})


@pytest.mark.parametrize(
    "passing",
    [
        verdict(),
        verdict(guards=[]),
        verdict(guards=[{"metric": "bleu", "passed": True}]),
        primary(low=-0.01, min_gain=-0.02),
        primary(base=0, tuned=1, gain=1, low=1, high=1, rows=1),
    ],
)
def test_better_passes(passing: dict[str, Any]) -> None:
    check_gate(passing, force=False, reason=None)
    check_gate(passing, force=False, reason=" ")
    check_gate(passing, force=True, reason="checked by hand")


REFUSED = {
    "not better": verdict(verdict="not_better"),
    "cannot tell": verdict(verdict="cannot_tell"),
    "another word": verdict(verdict="BETTER"),
    "no word": {key: value for key, value in verdict().items() if key != "verdict"},
    "a truth value": verdict(verdict=True),
    "a word in a list": verdict(verdict=["better"]),
    "nothing": None,
    "empty": {},
    "a list": ["better"],
    "a text": "better",
    "no primary": verdict(primary=None),
    "primary without metric": primary(metric=None),
    **{f"{name} is missing": primary(**{name: None}) for name in PRIMARY},
    **{f"{name} is NaN": primary(**{name: math.nan}) for name in PRIMARY},
    **{f"{name} is text": primary(**{name: "0.05"}) for name in PRIMARY if name != "metric"},
    **{f"{name} is a truth value": primary(**{name: True}) for name in PRIMARY},
    **{f"{name} is infinite": primary(**{name: math.inf}) for name in PRIMARY},
    "an integer beyond floats": primary(high=10**400),
    "no rows": primary(rows=0),
    "half rows": primary(rows=1.5),
    "interval upside down": primary(low=0.08, high=0.02),
    "gain outside": primary(gain=0.09),
    "better at min_gain": primary(min_gain=0.02),
    "better below min_gain": primary(min_gain=0.03),
    "min_gain is NaN": primary(min_gain=math.nan),
    "no guards": verdict(guards=None),
    "guards as a dict": verdict(guards={"exact_match": True}),
    "guard failed": verdict(guards=[GUARD, {**GUARD, "metric": "bleu", "passed": False}]),
    "guard without result": verdict(guards=[{"metric": "bleu"}]),
    "guard passed by text": verdict(guards=[{**GUARD, "passed": "true"}]),
    "guard passed by one": verdict(guards=[{**GUARD, "passed": 1}]),
    "guard passed on NaN": verdict(guards=[{**GUARD, "tuned": math.nan}]),
    "guard passed on nothing": verdict(guards=[{**GUARD, "base": None}]),
    "guard passed on a NaN metric": verdict(
        guards=[{"metric": "bleu", "passed": True}], metrics={"bleu": {"metric": "bleu", "tuned": math.nan}}
    ),
    "guard of no metric": verdict(guards=[{"passed": True}]),
    "guard is a word": verdict(guards=["passed"]),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_refused_unless_forced(refused: Any) -> None:
    with pytest.raises(VerdictRefused) as refusal:
        check_gate(refused, force=False, reason=None)
    assert refusal.value.exit_code == 4
    assert refusal.value.message
    check_gate(refused, force=True, reason="the customer waits")


@pytest.mark.parametrize("judged", [verdict(), verdict(verdict="not_better"), {}])
@pytest.mark.parametrize(("force", "reason"), [(True, None), (True, ""), (True, " \n"), (False, "because")])
def test_force_and_reason_go_together(judged: dict[str, Any], force: bool, reason: str | None) -> None:
    with pytest.raises(RecipeError):
        check_gate(judged, force=force, reason=reason)


def test_the_refusal_says_what_was_measured() -> None:
    failed = {**PRIMARY, "metric": "bleu", "tuned": 0.3, "gain": -0.1, "low": -0.2, "high": -0.05, "max_drop": 0.01}
    told = refusal_reasons(
        verdict(verdict="cannot_tell", guards=[{**failed, "passed": False}], reasons=["too few rows"])
    )
    assert told == [
        "rougeL went from 0.4 to 0.45, gain +0.05 (95 % interval +0.02 to +0.08, 200 rows): "
        "cannot tell whether that is better",
        "a guard did not hold: bleu went from 0.4 to 0.3, gain -0.1 (95 % interval -0.2 to -0.05, 200 rows), "
        "where it may fall by 0.01",
        "too few rows",
    ]


def test_a_guard_is_measured_where_the_metrics_are() -> None:
    fell = {**PRIMARY, "metric": "bleu", "tuned": 0.3, "gain": -0.1, "low": -0.2, "high": -0.05}
    told = refusal_reasons(verdict(guards=[{"metric": "bleu", "passed": False}], metrics={"bleu": fell}))
    assert len(told) == 1
    assert "bleu went from 0.4 to 0.3" in told[0]


def test_reasons_alone_do_not_refuse() -> None:
    assert refusal_reasons(verdict(reasons=["low > min_gain"])) == []
