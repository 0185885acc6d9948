"""pass@k is the share of subsets with a sample that passed, and the interval over rows covers the noise of sampling."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tunesmith.scoring import bootstrap
from tunesmith.scoring.samples import is_passable, pass_at_k, passes_of, row_scores, split_pass
from tunesmith.scoring.verdict import paired_verdict


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_sample_that_passed(samples: int) -> None:
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([i < passed for i in range(samples)], k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(samples, samples, samples) == 1
    assert pass_at_k(samples, 0, samples) == 0


def test_a_row_has_the_mean_of_its_samples_and_pass_at_powers_of_two() -> None:
    scores = row_scores("exact_match", [0.0, 1.0, 0.0, 0.0, 1.0, 0.0], passable=True)
    assert scores == {
        "exact_match": pytest.approx(1 / 3),
        "exact_match@pass2": pytest.approx(1 - 4 * 3 / (6 * 5)),
        "exact_match@pass4": pytest.approx(1 - 1 / 15),
        "exact_match@pass6": 1.0,
    }
    assert row_scores("json_field_f1", [0.9, 0.7], passable=True) == {
        "json_field_f1": pytest.approx(0.8), "json_field_f1@pass2": 0.0,
    }  # fmt: skip
    assert row_scores("rougeL", [0.9, 1.0], passable=False) == {"rougeL": pytest.approx(0.95)}
    assert row_scores("exact_match", [0.1], passable=True) == {"exact_match": 0.1}


def test_one_is_right_in_some_built_in_metrics_and_in_custom_metrics_from_0_to_1() -> None:
    assert is_passable("execution", [0.0, None, 1.0])
    assert not is_passable("rougeL", [0.0, 1.0])
    assert is_passable("mine:check", [0.0, None, 0.5])
    assert not is_passable("mine:words", [3.0, 1.0])
    assert not is_passable("mine:loss", [-0.5, 1.0])


def test_the_names_of_pass_at_k() -> None:
    assert split_pass("mine:check@pass16") == ("mine:check", 16)
    assert [split_pass(name) for name in ("rougeL", "a@passing", "@pass")] == [None, None, None]
    row = {"id": "a", "m": 0.5, "m@pass2": 1.0, "m@pass4": 1.0, "other@pass2": 0.0}
    assert passes_of("m", row, {"m": 0.5, "m@pass4": 1.0}) == ["m@pass4"]
    assert passes_of("m") == []


# --- coverage -----------------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def tries(gain: float, difficulty: tuple[float, float] = (0.6, 0.8)) -> Draw:
    """Return right and wrong samples, [rows, samples] of each model; the tuned one fails a share `gain` less often."""

    def draw(random: np.random.Generator, rows: int, samples: int) -> tuple[Any, Any]:
        fails = 1 - random.beta(*difficulty, rows)[:, None]
        own = random.random((2, rows, samples))
        return (own[0] >= fails).astype(float), (own[1] >= fails * (1 - gain)).astype(float)

    return draw


def graded(gain: float) -> Draw:
    """Return scores like ROUGE, with noise of rows and noise of samples."""

    def draw(random: np.random.Generator, rows: int, samples: int) -> tuple[Any, Any]:
        level, effect = random.beta(2, 4, rows), random.normal(gain, 0.05, rows)
        noise = random.normal(0, 0.15, (2, rows, samples))
        return level[:, None] + noise[0], (level + effect)[:, None] + noise[1]

    return draw


def failing(k: int, a: float = 0.6, b: float = 0.8) -> float:
    """Return the mean probability over rows that all of k samples fail, for a success rate of Beta(a, b)."""
    return math.prod((b + i) / (a + b + i) for i in range(k))


def coverage(draw: Draw, gain: float, rows: int, samples: int, seeds: int, k: int = 0) -> float:
    """Return how often the interval of the row means, or of pass@k, covers the true gain."""
    covered = 0
    for seed in range(seeds):
        sides = draw(np.random.default_rng([rows, samples, seed]), rows, samples)
        scores = [
            [row_scores("m", row, passable=k > 0)[f"m@pass{k}" if k else "m"] for row in side.tolist()]
            for side in sides
        ]
        found = paired_verdict(scores[0], scores[1], min_gain=-9, seed=seed)
        covered += found.low <= gain <= found.high
    return covered / seeds


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample less often: the intervals are noisier than those that users get."""
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 1_000)
    monkeypatch.setattr(bootstrap, "_RESAMPLES_PER_TAIL", 0)


@pytest.mark.usefixtures("fast")
def test_the_interval_over_row_means_covers_the_gain() -> None:
    assert 0.92 <= coverage(tries(0.3), 0.3 * failing(1), 60, 4, 300) <= 0.98


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("rows", [50, 200])
@pytest.mark.parametrize("samples", [2, 8])
@pytest.mark.parametrize("name", ["tries", "graded", "pass"])
def test_nested_intervals_cover_the_gain_in_93_to_97_percent(name: str, samples: int, rows: int) -> None:
    draws: dict[str, tuple[Draw, float, int]] = {
        "tries": (tries(0.3), 0.3 * failing(1), 0),
        "graded": (graded(0.03), 0.03, 0),
        "pass": (tries(0.3), (1 - 0.7**samples) * failing(samples), samples),
    }
    draw, gain, k = draws[name]
    assert 0.93 <= coverage(draw, gain, rows, samples, 1_500, k) <= 0.97


@pytest.mark.usefixtures("fast")
def test_samples_are_not_independent_rows() -> None:
    """If they were counted as rows, the interval would miss the gain too often: this is why row means are compared."""
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        effect = random.normal(0.03, 0.2, 20)[:, None]
        base, tuned = random.normal(0, 0.02, (2, 20, 8))
        found = paired_verdict(base.ravel(), (tuned + effect).ravel(), min_gain=-9, seed=seed)
        covered += found.low <= 0.03 <= found.high
    assert covered < 0.7 * 100
