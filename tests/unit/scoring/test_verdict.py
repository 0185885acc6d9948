"""The paired verdict: known cases, invariances, invalid input, and error rates by simulation."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises
from tests.support.simulations import EQUAL, GAINS, Draw

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring import bootstrap
from tunesmith.scoring.verdict import paired_verdict

ROWS = (30, 50, 100, 300)


# --- known cases --------------------------------------------------------------------------------------------------


def noisy(gain: float, rows: int, noise: float = 0.1, seed: int = 0) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    base = random.random(rows) * 0.5
    return base.tolist(), (base + random.normal(gain, noise, rows)).tolist()


def test_clear_gain_is_better() -> None:
    comparison = paired_verdict(*noisy(0.1, 200))
    assert comparison.verdict == "better"
    assert 0.07 < comparison.low < comparison.gain < comparison.high < 0.12
    assert comparison.gain == pytest.approx(comparison.tuned - comparison.base)
    assert (comparison.rows, comparison.groups, comparison.rows_needed, comparison.confidence) == (200, 200, None, 0.95)


def test_clear_loss_is_not_better() -> None:
    comparison = paired_verdict(*noisy(-0.1, 200))
    assert comparison.verdict == "not_better"
    assert comparison.high < 0
    assert comparison.rows_needed is None


def test_gain_below_min_gain_is_not_better() -> None:
    assert paired_verdict(*noisy(0.1, 200), min_gain=0.05).verdict == "better"
    assert paired_verdict(*noisy(0.1, 200), min_gain=0.2).verdict == "not_better"
    assert paired_verdict(*noisy(0.1, 200), min_gain=0.1).verdict == "cannot_tell"


def test_rows_needed_settle_the_verdict() -> None:
    base, tuned = noisy(0.02, 100, noise=0.15, seed=2)
    comparison = paired_verdict(base, tuned)
    assert comparison.verdict == "cannot_tell"
    assert comparison.rows_needed is not None
    assert 100 < comparison.rows_needed < 10_000
    more = [base * math.ceil(comparison.rows_needed * 1.1 / 100), tuned * math.ceil(comparison.rows_needed * 1.1 / 100)]
    assert paired_verdict(*more).verdict == "better"
    fewer = [base * int(comparison.rows_needed * 0.6 / 100), tuned * int(comparison.rows_needed * 0.6 / 100)]
    assert paired_verdict(*fewer).verdict == "cannot_tell"


def test_zero_gain_has_no_rows_needed() -> None:
    comparison = paired_verdict([0, 1, 0, 1] * 20, [1, 0, 0, 1] * 20)
    assert (comparison.verdict, comparison.gain, comparison.rows_needed) == ("cannot_tell", 0, None)
    assert (comparison.improved, comparison.worsened) == (20, 20)
    assert comparison.low == pytest.approx(-comparison.high)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows_exclude_nothing(rows: int) -> None:
    comparison = paired_verdict([0] * rows, [1] * rows)
    assert comparison.verdict == "cannot_tell"
    assert (comparison.low, comparison.high) == (-1, 1)
    assert comparison.rows_needed is not None
    assert paired_verdict([0.3] * rows, [0.5] * rows).verdict == "cannot_tell"
    assert paired_verdict([0.3] * rows, [0.5] * rows, min_gain=0.4).verdict == "cannot_tell"
    assert paired_verdict([31] * rows, [50] * rows).verdict == "cannot_tell"


def test_six_rows_can_suffice() -> None:
    assert paired_verdict([0] * 6, [1] * 6).verdict == "better"
    assert paired_verdict([0] * 6, [1] * 6, confidence=0.99).verdict == "cannot_tell"


def test_interval_of_equal_improvements_is_not_a_point() -> None:
    comparison = paired_verdict([0] * 150, [1] * 150)
    assert (comparison.verdict, comparison.gain, comparison.high) == ("better", 1, 1)
    assert 0.97 < comparison.low < 0.99  # if 1 in 41 rows does not improve, all of 150 do with a probability of 2.5 %
    assert comparison.improved == 150
    assert paired_verdict([0] * 150, [1] * 149 + [0]).low < comparison.low


@pytest.mark.parametrize("value", [0, 1, 0.37])
def test_interval_of_equal_scores_is_not_a_point(value: float) -> None:
    comparison = paired_verdict([value] * 300, [value] * 300)
    assert (comparison.verdict, comparison.gain, comparison.improved, comparison.worsened) == ("cannot_tell", 0, 0, 0)
    assert comparison.low == pytest.approx(-comparison.high)
    assert 0.002 < comparison.high < 0.0125  # the rule of three for both signs: 3.7 / 300
    assert paired_verdict([value] * 300, [value] * 300, min_gain=0.02).verdict == "not_better"


def test_few_changed_rows_agree_with_a_sign_test() -> None:
    def changed(improved: int, worsened: int, rows: int = 300) -> str:
        base = [0] * improved + [1] * worsened + [0] * (rows - improved - worsened)
        return paired_verdict(base, [1] * improved + [0] * (rows - improved)).verdict

    assert [changed(count, 0) for count in (3, 4, 5, 6, 7)] == ["cannot_tell"] * 3 + ["better"] * 2
    assert [changed(count, 1) for count in (6, 7, 8, 9)] == ["cannot_tell"] * 2 + ["better"] * 2
    assert [changed(0, count) for count in (5, 6)] == ["cannot_tell", "not_better"]


def test_group_counts_as_one_unit() -> None:
    base, tuned = noisy(0.05, 40, noise=0.15, seed=6)
    single = paired_verdict(base, tuned)
    grouped = paired_verdict(base * 10, tuned * 10, groups=list(range(40)) * 10)
    ungrouped = paired_verdict(base * 10, tuned * 10)
    assert (grouped.groups, grouped.rows, ungrouped.groups) == (40, 400, 400)
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high))
    assert ungrouped.high - ungrouped.low < 0.5 * (grouped.high - grouped.low)
    assert paired_verdict(base, tuned, groups=["same"] * 40).verdict == "cannot_tell"


def test_groups_of_one_row_change_nothing() -> None:
    base, tuned = noisy(0.02, 60)
    names = [f"row {number}" for number in range(60)]
    assert paired_verdict(base, tuned, groups=names) == paired_verdict(base, tuned)


def test_weights_make_the_score_a_weighted_mean() -> None:
    comparison = paired_verdict([0.0, 0.5] * 10, [1.0, 0.5] * 10, weights=[1, 3] * 10)
    assert (comparison.base, comparison.tuned, comparison.gain) == (0.375, 0.625, 0.25)
    base, tuned = noisy(0.05, 50)
    assert paired_verdict(base, tuned, weights=[7.0] * 50).low == pytest.approx(paired_verdict(base, tuned).low)
    unweighted = paired_verdict([*base, 0.0], [*tuned, 1.0], weights=[1.0] * 50 + [0.0])
    assert unweighted.low == pytest.approx(paired_verdict(base, tuned).low)
    assert (unweighted.rows, unweighted.groups) == (51, 50)


def test_transform_compares_perplexities() -> None:
    random = np.random.default_rng(0)
    base = -random.gamma(4, 0.5, 200)
    tuned = base + random.normal(0.1, 0.2, 200)
    weights = random.integers(1, 90, 200)
    comparison = paired_verdict(base, tuned, weights=weights, transform=lambda mean: -math.exp(-mean))
    assert comparison.base == pytest.approx(-math.exp(-np.average(base, weights=weights)))
    assert comparison.gain == pytest.approx(comparison.tuned - comparison.base)
    assert comparison.verdict == "better"
    assert 0 < comparison.low < comparison.gain < comparison.high < comparison.gain + 1
    same = paired_verdict(base, tuned, weights=weights, transform=lambda mean: 3 * mean)
    plain = paired_verdict(base, tuned, weights=weights)
    assert (same.gain, same.low, same.high) == pytest.approx((3 * plain.gain, 3 * plain.low, 3 * plain.high))


def test_higher_confidence_gives_a_wider_interval() -> None:
    widths = [
        comparison.high - comparison.low
        for comparison in (paired_verdict(*noisy(0, 80), confidence=c) for c in (0.8, 0.95, 0.99))
    ]
    assert widths == sorted(widths)
    assert widths[0] < 0.8 * widths[1] < 0.8 * widths[2]


def test_interval_of_few_graded_rows_is_as_wide_as_students_t() -> None:
    ratios = []
    for seed in range(40):
        base, tuned = noisy(0.2, 10, seed=seed)
        deviation = np.std(np.subtract(tuned, base), ddof=1) / math.sqrt(10)
        comparison = paired_verdict(base, tuned, min_gain=-1)
        ratios.append((comparison.high - comparison.low) / (2 * 2.262 * deviation))  # t(0.975, 9 degrees of freedom)
    assert 1 <= np.mean(ratios) < 1.15


def test_comparison_of_many_rows_uses_few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_MAX_DRAWS", 5_000_000)
    monkeypatch.setattr(bootstrap, "_DRAWS_PER_CHUNK", 10_000)
    random = np.random.default_rng(0)
    base = random.random(30_000)
    comparison = paired_verdict(base, base + random.normal(0.002, 0.1, 30_000))
    assert comparison.verdict == "better"
    assert comparison.high - comparison.low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(30_000), rel=0.1)


# --- invariances --------------------------------------------------------------------------------------------------

GRADED = st.floats(0, 1).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(GRADED, GRADED), min_size=1, max_size=30) | st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(pairs: list[tuple[float, float]], random: Any) -> None:
    rows = [(base, tuned, index % 7) for index, (base, tuned) in enumerate(pairs)]
    mixed = random.sample(rows, len(rows))
    for grouped in (False, True):
        first, second = (
            paired_verdict(
                [row[0] for row in order],
                [row[1] for row in order],
                groups=[row[2] for row in order] if grouped else None,
            )
            for order in (rows, mixed)
        )
        assert first == second


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_swapping_base_and_tuned_mirrors_the_interval(pairs: list[tuple[float, float]]) -> None:
    base, tuned = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    original, swapped = paired_verdict(base, tuned), paired_verdict(tuned, base)
    mirrored = -original.gain, -original.high, -original.low
    assert (swapped.gain, swapped.low, swapped.high) == pytest.approx(mirrored, abs=1e-12)
    assert (swapped.improved, swapped.worsened) == (original.worsened, original.improved)
    assert original.low <= original.gain <= original.high


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3))
def test_shift_of_both_changes_nothing_and_shift_of_one_shifts_the_interval(seed: int, by: float) -> None:
    base, tuned = noisy(0.03, 20, seed=seed)
    plain = paired_verdict(base, tuned)
    both = paired_verdict([value + by for value in base], [value + by for value in tuned])
    assert (both.gain, both.low, both.high) == pytest.approx((plain.gain, plain.low, plain.high), abs=1e-6)
    shifted = paired_verdict(base, [value + by for value in tuned], min_gain=by)
    assert (shifted.gain - by, shifted.low - by, shifted.high - by) == pytest.approx(
        (plain.gain, plain.low, plain.high), abs=0.15 * (plain.high - plain.low)
    )  # the order of the sorted rows changes, and with it the draws of each row


def test_seed_changes_the_interval_only_a_little() -> None:
    base, tuned = noisy(0.03, 100)
    assert paired_verdict(base, tuned, seed=1) == paired_verdict(base, tuned, seed=1)
    lows = [paired_verdict(base, tuned, seed=seed).low for seed in range(5)]
    assert len(set(lows)) == 5
    assert max(lows) - min(lows) < 0.1 * (paired_verdict(base, tuned).gain - lows[0])


def test_arrays_lists_and_booleans_give_equal_verdicts() -> None:
    base, tuned = [0, 1, 1, 0] * 5, [1, 1, 1, 0] * 5
    expected = paired_verdict(base, tuned)
    assert paired_verdict(np.array(base), np.array(tuned, dtype=np.float32)) == expected
    assert paired_verdict([bool(value) for value in base], [bool(value) for value in tuned]) == expected


# --- invalid input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5", 1j])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_value_that_is_not_a_number_is_refused(bad: Any, side: str) -> None:
    scores: dict[str, Any] = {"base": [0.1] * 10, "tuned": [0.2] * 10}
    scores[side][7] = bad
    with raises(DataError, "not-a-number", where=f"{side}[7]") as error:
        paired_verdict(scores["base"], scores["tuned"])
    assert error.value.hint


@pytest.mark.parametrize(
    ("base", "tuned", "more", "code"),
    [
        ([], [], {}, "no-rows"),
        ([1], [], {}, "unequal-lengths"),
        ([1, 2], [1], {}, "unequal-lengths"),
        ([1, 2], [1, 2], {"groups": [1]}, "unequal-lengths"),
        ([1, 2], [1, 2], {"weights": [1]}, "unequal-lengths"),
        ([1, 2], [1, 2], {"weights": [0, 0]}, "bad-weight"),
        ([1, 2], [1, 2], {"weights": [2, -1]}, "bad-weight"),
        ([1, 2], [1, 2], {"weights": [2, math.nan]}, "not-a-number"),
        ([-800] * 20, [-801] * 20, {"transform": lambda mean: -math.exp(-mean)}, "not-a-number"),
        ([-1] * 20, [-2] * 20, {"transform": lambda mean: math.log(mean)}, "not-a-number"),
    ],
)
def test_invalid_data_are_refused(base: list[float], tuned: list[float], more: dict[str, Any], code: str) -> None:
    with raises(DataError, code) as error:
        paired_verdict(base, tuned, **more)
    assert error.value.hint


@pytest.mark.parametrize(
    "setting",
    [{"min_gain": math.nan}, {"confidence": 95}, {"confidence": 1}, {"confidence": 0}, {"seed": -1}],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with raises(RecipeError, "wrong-value", *setting):
        paired_verdict([0, 1], [1, 1], **setting)


# --- error rates --------------------------------------------------------------------------------------------------


def simulate(draw: Draw, rows: int, seeds: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 1_000)  # faster, with noisier intervals than users get
    monkeypatch.setattr(bootstrap, "_RESAMPLES_PER_TAIL", 0)
    return [paired_verdict(**draw(np.random.default_rng([rows, seed]), rows), seed=seed) for seed in range(seeds)]


def test_equal_models_are_rarely_called_better(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = simulate(EQUAL["binary"], 100, 400, monkeypatch)
    assert sum(comparison.verdict == "better" for comparison in verdicts) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", EQUAL)
def test_equal_models_are_called_better_in_at_most_10_of_400(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = simulate(EQUAL[name], rows, 400, monkeypatch)
    assert sum(comparison.verdict == "better" for comparison in verdicts) <= 10
    assert sum(comparison.verdict == "not_better" for comparison in verdicts) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", GAINS)
def test_interval_covers_the_true_gain_at_its_confidence(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, gain = GAINS[name]
    comparisons = simulate(draw, rows, 500, monkeypatch)
    coverage = sum(comparison.low <= gain <= comparison.high for comparison in comparisons) / len(comparisons)
    assert 0.92 <= coverage <= 0.98  # with 4,000 seeds it is 0.94 to 0.97; with 500 it is uncertain by 0.01
