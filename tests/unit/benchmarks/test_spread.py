"""Rates, spreads and ratios of repeated measurements."""

import pytest
from benchmarks.versus.spread import Spread, rate, ratios, significant


def steps(*seconds: float, tokens: int = 100) -> list[dict[str, float]]:
    return [{"step": number, "seconds": second, "tokens": tokens} for number, second in enumerate(seconds, 1)]


def test_rate_ignores_the_first_two_steps() -> None:
    assert rate(steps(50.0, 20.0, 1.0, 3.0)) == 50.0
    assert rate(steps(50.0, 20.0)) == 5.0
    assert rate([]) is None


def test_rate_is_weighted_by_tokens() -> None:
    uneven = [*steps(9, 9), {"step": 3, "seconds": 1.0, "tokens": 10}, {"step": 4, "seconds": 1.0, "tokens": 30}]
    assert rate(uneven) == 20.0


def test_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([1.23456789]).to_json() == {"median": 1.235, "low": 1.235, "high": 1.235}


def test_ratios_pair_runs_and_skip_failed_ones() -> None:
    assert ratios([10.0, 20.0, None, 40.0], [5.0, None, 3.0, 10.0]) == [2.0, 4.0]


def test_ratios_need_equally_many_runs() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (zip words it)
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("value", "rounded"), [(1234.567, 1235.0), (0.00123456, 0.001235), (0.0, 0.0)])
def test_significant_keeps_four_digits(value: float, rounded: float) -> None:
    assert significant(value) == rounded
