"""The estimated power agrees with simulated comparisons, and guards on further sets err as rarely as they should."""

import numpy as np
import pytest

from tunesmith.scoring.bootstrap import min_units
from tunesmith.scoring.metrics import METRIC_NAMES
from tunesmith.scoring.power import (
    POWER,
    detectable_gain,
    excluded_drop,
    typical_spread,
    units_needed,
    units_to_pass,
)
from tunesmith.scoring.verdict import paired_verdict

CONFIDENCE = 0.95


def simulate(units: int, gain: float, runs: int, *, all_or_nothing: bool, spread: float, seed: int = 0) -> np.ndarray:
    """Return the low ends of the intervals of simulated comparisons with a true gain: [runs]."""
    random, lows = np.random.default_rng(seed), []
    for _ in range(runs):
        if all_or_nothing:  # of the rows, (spread ** 2 + gain) / 2 improve and (spread ** 2 - gain) / 2 worsen
            share = spread**2 + gain**2
            drawn = random.random(units)
            improves, worsens = drawn < (share + gain) / 2, drawn > 1 - (share - gain) / 2
            stays = (random.random(units) < 0.5).astype(float)
            base = np.where(improves, 0.0, np.where(worsens, 1.0, stays))
            tuned = np.where(improves, 1.0, np.where(worsens, 0.0, stays))
        else:
            level = random.uniform(0.3, 0.7, units)
            half = random.normal(gain, spread, units) / 2
            base, tuned = np.clip(level - half, 0, 1), np.clip(level + half, 0, 1)
        lows.append(paired_verdict(base, tuned, confidence=CONFIDENCE).low)
    return np.array(lows)


@pytest.mark.parametrize(
    ("units", "metric"), [(60, "rougeL"), pytest.param(200, "exact_match", marks=pytest.mark.slow)]
)
def test_a_gain_of_the_estimated_size_is_detected_in_80_percent(units: int, metric: str) -> None:
    spread = typical_spread(metric)
    assert spread is not None
    gain = detectable_gain(units, spread, CONFIDENCE)
    assert gain is not None
    lows = simulate(units, gain, 150, all_or_nothing=metric == "exact_match", spread=spread)
    assert np.mean(lows > 0) == pytest.approx(POWER, abs=0.1)


@pytest.mark.parametrize("metric", ["execution", "json_valid", "tool_call", "tool_call_name"])
def test_all_metrics_that_are_0_or_1_have_the_spread_of_exact_match(metric: str) -> None:
    assert typical_spread(metric) == typical_spread("exact_match") == 0.5
    assert typical_spread("tool_call_f1") == typical_spread("json_field_f1") == 0.25


def test_four_times_the_rows_detect_about_half_the_gain() -> None:
    gain = detectable_gain(200, 0.25, CONFIDENCE)
    assert gain is not None
    assert gain == pytest.approx((2.24 + 0.84) * 0.25 / 200**0.5, rel=0.02)
    needed = units_needed(gain / 2, 0.25, CONFIDENCE)
    assert 780 < needed <= 800
    smaller = detectable_gain(needed - 1, 0.25, CONFIDENCE)
    assert smaller is not None
    assert smaller > gain / 2
    assert detectable_gain(200, 0.25, 0.9) < gain < detectable_gain(200, 0.25, 0.99)  # type: ignore[operator]


def test_too_few_units_detect_nothing() -> None:
    assert detectable_gain(min_units(CONFIDENCE) - 1, 0.25, CONFIDENCE) is None
    assert detectable_gain(min_units(CONFIDENCE), 0.25, CONFIDENCE) is not None
    assert excluded_drop(min_units(CONFIDENCE) - 1, CONFIDENCE) == 1


def test_only_metrics_of_a_known_scale_have_a_spread() -> None:
    assert all(typical_spread(name) is not None for name in METRIC_NAMES)
    assert typical_spread("perplexity") is typical_spread("mine:words") is None
    spreads = [typical_spread(name) for name in ("token_accuracy", "rougeL", "exact_match")]
    assert spreads == sorted(spreads, key=float)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_drop", [0.1, 0.02])
def test_units_to_pass_is_the_smallest_number_that_can(max_drop: float) -> None:
    needed = units_to_pass(max_drop, CONFIDENCE)
    assert excluded_drop(needed, CONFIDENCE) <= max_drop < excluded_drop(needed - 1, CONFIDENCE)


def drop_rates(units: int, max_drop: float, spread: float, runs: int) -> tuple[float, float]:
    """Return how often the guard passes equal models, and a drop of twice `max_drop`."""
    equal = simulate(units, 0.0, runs, all_or_nothing=False, spread=spread)
    worse = simulate(units, -2 * max_drop, runs, all_or_nothing=False, spread=spread, seed=1)
    return float(np.mean(equal >= -max_drop)), float(np.mean(worse >= -max_drop))


def test_a_further_set_passes_equal_models_and_stops_a_drop_of_twice_the_limit() -> None:
    passed, missed = drop_rates(200, 0.03, 0.1, 40)
    assert passed >= 0.95
    assert missed <= 0.025


@pytest.mark.slow
@pytest.mark.parametrize(("units", "max_drop", "spread"), [(100, 0.04, 0.1), (200, 0.07, 0.25), (500, 0.02, 0.1)])
def test_further_sets_of_realistic_sizes_err_rarely(units: int, max_drop: float, spread: float) -> None:
    passed, missed = drop_rates(units, max_drop, spread, 100)
    assert passed >= 0.95
    assert missed <= 0.025
