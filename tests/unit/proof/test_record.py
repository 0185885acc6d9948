"""The record of a proof, and its strict reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.proofs import failing, proof

from tunesmith.core.errors import DamagedFile, NotProved
from tunesmith.proof.prove import require_proved
from tunesmith.proof.record import Check, Measure, parse_proof, read_proof, write_proof

IMPOSSIBLE = tuple(Check(check.name, impossible="no way") for check in proof().checks)


@pytest.mark.parametrize("checks", [proof().checks, failing("logits"), IMPOSSIBLE])
def test_a_proof_survives_its_file(checks: tuple[Check, ...], tmp_path: Path) -> None:
    made = proof(checks=checks, forced="asked by the team", versions={"torch": "2.13"})
    found = read_proof(write_proof(made, tmp_path))
    assert found.to_json() == made.to_json()
    assert (found.passed, found.forced) == (made.passed, "asked by the team")


def test_without_rows_there_is_no_verdict(tmp_path: Path) -> None:
    assert read_proof(write_proof(proof(verdict=None, rows=0), tmp_path)).verdict is None


@pytest.mark.parametrize(
    ("measure", "passed"),
    [
        (Measure("x", 3.0), True),
        (Measure("x", 3.0, at_most=3.0), True),
        (Measure("x", 3.1, at_most=3.0), False),
        (Measure("x", 94, 100, at_least=95.0), False),
        (Measure("x", 95, 100, at_least=95.0), True),
        (Measure.all_of("x", 99, 100), False),
        (Measure.all_of("x", 100, 100), True),
    ],
)
def test_a_measure_passes_within_its_limits(measure: Measure, passed: bool) -> None:
    assert measure.passed is passed
    assert (Check("ids", (measure,)).status == "passed") is passed


def test_a_proof_without_logits_and_answers_proves_nothing() -> None:
    checks = tuple(
        Check(check.name, impossible="no way") if check.name in ("logits", "answers") else check
        for check in proof().checks
    )
    made = proof(checks=checks)
    assert (made.passed, made.failed) == (False, ())
    with raises(NotProved, "not-proved"):
        require_proved(made)


@pytest.mark.parametrize(("limit", "passed"), [(None, False), (0.05, True)])
def test_answers_that_need_not_be_equal_prove_nothing_without_a_limit_of_the_loss(
    limit: float | None, passed: bool
) -> None:
    *others, verdict = proof().checks
    shown, excluded = verdict.measures
    checks = (
        *(Check(check.name, impossible="no way") for check in others[:3]),
        Check("answers", (Measure("equal answers", 0, 100), Measure.all_of("answers that end", 100, 100))),
        replace(verdict, measures=(shown, replace(excluded, at_most=limit))),
    )
    made = proof(type="q8_0", checks=checks)
    assert (made.passed, made.failed) == (passed, ())


@pytest.mark.parametrize("name", ["ids", "template", "logits", "answers", "verdict"])
def test_each_failed_check_fails_the_proof(name: str) -> None:
    made = proof(checks=failing(name))
    assert [check.name for check in made.failed] == [name]
    with raises(NotProved, "not-proved") as caught:
        require_proved(made)
    assert (caught.value.exit_code, name in caught.value.message) == (8, True)
    require_proved(proof())


def test_erased_quantized_weights_have_another_hint_than_a_wrong_file() -> None:
    hints = set[str | None]()
    for type, name in (("q4_1", "answers"), ("f16", "answers"), ("q4_1", "ids")):
        with raises(NotProved, "not-proved") as caught:
            require_proved(proof(type=type, checks=failing(name)))
        hints.add(caught.value.hint)
    assert len(hints) == 3


def _changed(change: Any) -> Any:
    stored = json.loads(json.dumps(proof(checks=failing("ids")).to_json()))
    change(stored)
    return stored


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.update(passed=True),
        lambda stored: stored["checks"][0].update(status="passed"),
        lambda stored: stored["checks"][0]["measures"][0].update(value=100),
        lambda stored: stored["checks"][0].update(impossible="no way"),
        lambda stored: stored.update(rows=-1),
        lambda stored: stored.update(checks="all"),
        lambda stored: stored.pop("engine"),
        lambda stored: stored.pop("verdict"),
        lambda stored: stored["checks"][1].pop("measures"),
        lambda stored: stored["verdict"].pop("primary"),
        lambda stored: stored["verdict"].update(verdict="better"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change: Any) -> None:
    with pytest.raises(DamagedFile) as caught:
        parse_proof(_changed(change))
    assert caught.value.code in ("damaged-proof", "damaged-verdict")
