"""How values and gains of a metric are written."""

import pytest
from tests.support.verdicts import comparison
from tests.unit.report.conftest import MINUS

from tunesmith.report.unit import NONE, Unit, unit_of


@pytest.mark.parametrize(
    ("metric", "values", "is_share", "value"),
    [
        ("rougeL", (0.4, 0.5), True, "40.0 %"),
        ("rougeL", (40.0, 50.0), False, "0.40"),
        ("mine:politeness", (0.0, 1.0), True, "40.0 %"),
        ("mine:words", (0.4, 12.0), False, "0.40"),
        ("perplexity", (1.0,), False, "0.40"),
        ("loss", (), False, "0.400"),
    ],
)
def test_unit_follows_from_metric_and_values(
    metric: str, values: tuple[float, ...], is_share: bool, value: str
) -> None:
    unit = Unit.of(metric, *values)
    assert (unit.is_share, unit.value(0.4)) == (is_share, value)


def test_unknown_values_are_a_dash() -> None:
    assert Unit.of("rougeL").value(None) == NONE
    assert Unit.of("rougeL").value(float("nan")) == NONE


def test_changes_have_a_sign_and_zero_has_none() -> None:
    unit = unit_of(comparison(base=0.4, tuned=0.5))
    assert [unit.change(number) for number in (0.05, -0.05, 0.0, -0.0001)] == ["+5.0", f"{MINUS}5.0", "0.0", "0.0"]
    assert (unit.points(0.05), Unit.of("perplexity", 9.0).points(-1.5)) == ("+5.0 points", f"{MINUS}1.50")


def test_interval_gets_a_decimal_if_an_end_would_be_rounded_to_zero() -> None:
    unit = Unit.of("rougeL", 0.5)
    assert unit.interval(0.02, 0.04) == "+2.0 to +4.0"
    assert unit.interval(0.0004, 0.04) == "+0.04 to +4.00"
    assert unit.interval(0.0, 0.04) == "0.0 to +4.0"
