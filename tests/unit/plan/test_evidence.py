"""What `plan` says about the power of the test rows, and its warnings."""

from pathlib import Path

import pytest

from tunesmith.plan.evidence import Evidence, evidence_text
from tunesmith.plan.run_plan import plan_run
from tunesmith.scoring.power import detectable_gain, units_needed

SET = "{name: small, source: {file: more.jsonl}, task: completion, prompt: '{question}', response: '{answer}'"


def test_plan_estimates_the_gain_that_its_test_rows_can_detect(recipe: Path) -> None:
    plan = plan_run(recipe, ["evaluate.rows=10"])
    assert (plan.evidence.metric, plan.evidence.rows, plan.evidence.units) == ("rougeL", 10, 10)
    assert plan.evidence.all_rows == plan.rows.counts["test"]
    assert plan.evidence.gain == detectable_gain(10, 0.25, 0.95)
    assert plan.to_json()["evidence"]["gain"] == plan.evidence.gain
    assert any("cannot tell" in warning and "rougeL" in warning for warning in plan.warnings)
    assert "evaluate.rows: 800" in evidence_text(Evidence("rougeL", 200, 900, 200, 0.25, 0.054, 796))
    assert "900" in evidence_text(Evidence("rougeL", 200, 900, 200, 0.25, 0.027, 3120))


def test_groups_count_as_one_row_and_metrics_without_a_scale_are_not_estimated(recipe: Path) -> None:
    plan = plan_run(recipe, ["data.split.by=tree", "evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"])
    assert plan.evidence.units < plan.evidence.rows
    assert plan.evidence.gain is plan.evidence.rows_for_half is None
    grouped = plan_run(recipe, ["data.split.by=tree", "data.split.test=0.9", "data.split.valid=0", "evaluate.rows=60"])
    rows, units = grouped.evidence.rows, grouped.evidence.units
    assert grouped.evidence.gain is not None
    needed = units_needed(grouped.evidence.gain / 2, 0.25, 0.95)
    assert grouped.evidence.rows_for_half == round(needed * rows / units)


@pytest.mark.parametrize(("rows", "needed"), [(3, 6), (8, None)])
def test_plan_warns_of_too_few_rows_for_any_verdict(recipe: Path, rows: int, needed: int | None) -> None:
    changes = [f"evaluate.rows={rows}", "evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"]
    found = [warning for warning in plan_run(recipe, changes).warnings if "cannot tell" in warning]
    assert len(found) == (needed is not None)
    assert all(f"at least {needed} rows" in warning for warning in found)


def test_plan_warns_of_guards_that_cannot_pass_and_of_the_rows_they_need(recipe: Path) -> None:
    guard = "evaluate.guards=[{metric: exact_match, max_drop: 0.01}]"
    other = SET.replace("small", "other")
    also = f"evaluate.also=[{SET}, metrics: [bleu], max_drop: 0.9}}, {other}, metrics: [bleu], max_drop: 0.02}}]"
    found = [warning for warning in plan_run(recipe, [guard, also]).warnings if "cannot pass" in warning]
    assert len(found) == 2
    assert "exact_match" in found[0]
    assert "bleu on other" in found[1]
