"""The gate: open for a complete verdict that is `better`, closed for everything else; force needs a reason."""

from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.verdicts import comparison, of_seeds, verdict, with_set

from tunesmith.core.errors import RecipeError, VerdictRefused
from tunesmith.registry.gate import check_gate, refusal_reasons

BLEU = comparison("bleu", base=0.4, tuned=0.3, gain=-0.1, low=-0.2, high=-0.05)
BETTER = verdict().to_json()
NOT_BETTER = verdict(comparison(low=-0.08, high=-0.02, gain=-0.05, tuned=0.35)).to_json()
CANNOT_TELL = verdict(comparison(low=-0.02)).to_json()


@pytest.mark.parametrize(
    "better",
    [
        BETTER,
        verdict(comparison(), BLEU, guards=[("bleu", 0.2)]).to_json(),
        verdict(comparison(low=-0.01, min_gain=-0.02)).to_json(),
        with_set(verdict(), "general", comparison("perplexity", gain=0.0, low=-0.04, tuned=0.4), 0.05).to_json(),
        verdict(comparison(base=0, tuned=1, gain=1, low=1, high=1, rows=1)).to_json(),
        verdict(of_seeds(0.01, -0.01, 0.02)).to_json(),
    ],
)
def test_better_verdict_passes(better: dict[str, Any]) -> None:
    check_gate(better, force=False, reason=None)
    check_gate(better, force=False, reason=" ")
    check_gate(better, force=True, reason="checked by hand")
    assert refusal_reasons(better) == []


FORGOT = with_set(verdict(), "general", comparison("perplexity", gain=0.0, low=-0.06, tuned=0.4), 0.05).to_json()
REFUSED = {
    "worse on a further set": FORGOT,
    "further set without its guard": {**FORGOT, "guards": []},
    "not better": NOT_BETTER,
    "cannot tell": CANNOT_TELL,
    "too many rows failed": verdict(comparison(failed=11)).to_json(),
    "guard failed": verdict(comparison(), BLEU, guards=[("bleu", 0.1)]).to_json(),
    "only the mean over seeds is better": verdict(of_seeds(-0.01, 0.02, 0.03)).to_json(),
    "each seed is better, but not the mean": verdict(of_seeds(0.01, 0.02, 0.03, low=-0.02)).to_json(),
    "guard failed for the run's own model": verdict(
        comparison(), of_seeds(-0.12, 0.0, 0.0, metric="bleu", low=-0.05), guards=[("bleu", 0.1)]
    ).to_json(),
    "nothing": None,
    "empty": {},
    "a list": ["better"],
    "a text": "better",
    "the word alone": {"verdict": "better"},
    "a word that the numbers contradict": {**CANNOT_TELL, "verdict": "better"},
    "no guards": {**BETTER, "guards": None},
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_other_verdicts_are_refused_unless_forced(refused: Any) -> None:
    with raises(VerdictRefused, "verdict") as error:
        check_gate(refused, force=False, reason=None)
    assert error.value.exit_code == 4
    assert error.value.message
    check_gate(refused, force=True, reason="the customer waits")


@pytest.mark.parametrize("stored", [BETTER, NOT_BETTER, {}, None])
@pytest.mark.parametrize(("force", "reason"), [(True, None), (True, ""), (True, " \n"), (False, "because")])
def test_force_needs_a_reason_and_a_reason_needs_force(stored: Any, force: bool, reason: str | None) -> None:
    with raises(RecipeError, "force-reason"):
        check_gate(stored, force=force, reason=reason)


def test_refusal_names_the_further_set() -> None:
    [problem] = refusal_reasons(FORGOT)
    for value in ("general", "perplexity", "-0.06", "0.05"):
        assert value in problem


def test_refusal_names_the_measurements_and_the_reasons() -> None:
    stored = verdict(comparison(low=-0.02), BLEU, guards=[("bleu", 0.01)], reasons=["too few rows"]).to_json()
    primary, guard, reason = refusal_reasons(stored)
    for value in ("rougeL", "0.4", "0.45", "+0.05", "95 %", "-0.02", "+0.08", "200 rows"):
        assert value in primary
    for value in ("bleu", "0.4", "0.3", "-0.1", "-0.2", "-0.05", "0.01"):
        assert value in guard
    assert reason == "too few rows"


def test_reasons_alone_do_not_refuse() -> None:
    assert refusal_reasons(verdict(reasons=["low > min_gain"]).to_json()) == []
