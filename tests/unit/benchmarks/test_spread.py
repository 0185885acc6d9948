"""Rates, spreads and ratios of repeated measurements."""

import pytest
from benchmarks.versus.spread import Spread, rate, ratios, significant


def steps(*seconds: float, tokens: int = 100) -> list[dict[str, float]]:
    return [{"step": number, "seconds": one, "tokens": tokens} for number, one in enumerate(seconds, 1)]


def test_the_first_two_steps_do_not_count() -> None:
    assert rate(steps(50.0, 20.0, 1.0, 3.0)) == 50.0
    assert rate(steps(50.0, 20.0)) == 5.0
    assert rate([]) is None


def test_steps_weigh_by_their_tokens_and_not_by_their_rates() -> None:
    uneven = [*steps(9, 9), {"step": 3, "seconds": 1.0, "tokens": 10}, {"step": 4, "seconds": 1.0, "tokens": 30}]
    assert rate(uneven) == 20.0


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([1.23456789]).to_json() == {"median": 1.235, "low": 1.235, "high": 1.235}


def test_ratios_pair_the_turns_and_leave_failed_ones_out() -> None:
    assert ratios([10.0, 20.0, None, 40.0], [5.0, None, 3.0, 10.0]) == [2.0, 4.0]


def test_a_ratio_for_every_turn() -> None:
    with pytest.raises(ValueError, match="argument"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("value", "told"), [(1234.567, 1235.0), (0.00123456, 0.001235), (0.0, 0.0)])
def test_four_places_count(value: float, told: float) -> None:
    assert significant(value) == told
