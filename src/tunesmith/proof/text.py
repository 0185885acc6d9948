"""The table of a proof for a terminal and for a model card."""

from collections.abc import Sequence

from tunesmith.proof.record import Check, Measure, Proof
from tunesmith.report.text import table
from tunesmith.report.unit import unit_of
from tunesmith.report.wording import confidence


def proof_lines(proof: Proof) -> list[str]:
    """Return the result, a table of the checks, and their details."""
    result = "proved" if proof.passed else "NOT proved"
    asked = f"{proof.rows:,} test rows" if proof.rows else "probes only"
    lines = [f"{result}: {proof.engine}, {proof.type}, against {proof.model} in fp32 ({asked})", ""]
    lines += table([("check", "result", "measured"), *(row for check in proof.checks for row in check_rows(check))])
    if proof.verdict is not None:
        lines += ["", verdict_sentence(proof)]
    notes = [f"{check.name}: {detail}" for check in proof.checks for detail in check.details]
    lines += ["", *notes] if notes else []
    if proof.forced is not None:
        lines += ["", f"published by force: {proof.forced}"]
    return lines


def check_rows(check: Check) -> list[tuple[str, str, str]]:
    """Return the rows of the table for one check: name, result, and a measure each."""
    measured = [measure_text(measure) for measure in check.measures] or [check.impossible or ""]
    return [(check.name, check.status, measured[0]), *(("", "", text) for text in measured[1:])]


def measure_text(measure: Measure) -> str:
    """Return a measure with its limit."""
    if measure.of is not None:
        text = f"{measure.value:,.0f} of {measure.of:,} {measure.name}"
        limit = "" if measure.at_least in (None, measure.of) else f"at least {measure.at_least:,.0f}"
    else:
        text, limit = f"{measure.name} {measure.value:.2g}", ""
        if measure.at_most is not None:
            limit = f"at most {measure.at_most:g}"
    return f"{text} ({limit})" if limit else text


def verdict_sentence(proof: Proof) -> str:
    """Return the scores of the reference and of the engine, with the interval of their difference."""
    assert proof.verdict is not None
    primary = proof.verdict.primary
    unit = unit_of(primary)
    change = f"{unit.interval(primary.low, primary.high)}{' points' if unit.is_share else ''}"
    scores = f"{unit.value(primary.base)} in fp32, {unit.value(primary.tuned)} here"
    return f"{primary.metric}: {scores}; the difference is {change} ({confidence(primary)})"


def proof_text(proof: Proof) -> str:
    """Return the text for a terminal."""
    return "\n".join(proof_lines(proof))


def as_table(proof: Proof) -> Sequence[tuple[str, str, str]]:
    """Return (check, result, measures) for a model card, one row for each check."""
    return [
        (check.name, check.status, "; ".join(map(measure_text, check.measures)) or check.impossible or "")
        for check in proof.checks
    ]
