"""How much a gain varies with the seed: the variance component, and the seeds that would settle it."""

import numpy as np
import pytest

from tunesmith.scoring.seeds import SeedSpread, seed_spread


def test_the_variance_is_that_of_additive_effects() -> None:
    base, effects = np.linspace(0, 1, 20), np.array([0.1, 0.2, 0.6])
    spread = seed_spread(base, base + 0.3 + effects[:, None], np.ones(20), None, slope=1.0)
    assert spread.seeds == 3
    assert spread.variance == pytest.approx(effects.var(ddof=1) / 3)
    assert spread.half_width(0.05) == pytest.approx(4.3027 * np.sqrt(effects.var(ddof=1) / 3), rel=1e-4)
    assert seed_spread(base, base + effects[:, None], np.ones(20), None, slope=5.0).variance == pytest.approx(
        25 * effects.var(ddof=1) / 3
    )


def test_noise_of_rows_is_not_counted_as_that_of_seeds() -> None:
    """Seeds without an effect differ by the noise of the rows, which the bootstrap over rows counts already."""
    variances = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        noise = random.normal(0, 1, (4, 50))
        variances.append(seed_spread(np.zeros(50), noise, np.ones(50), None, slope=1.0).variance)
    assert sum(variance == 0 for variance in variances) > 0.45 * 300
    assert float(np.mean(variances)) < 0.6 / 50 / 4  # without the subtraction, it would be 1 / 50 / 4


def test_rows_of_a_group_count_once() -> None:
    random = np.random.default_rng(0)
    noise, weights = random.normal(0, 1, (3, 30)), np.ones(30)
    single = seed_spread(np.zeros(30), noise, weights, None, slope=1.0)
    repeated = seed_spread(np.zeros(90), np.tile(noise, 3), np.ones(90), list(range(30)) * 3, slope=1.0)
    assert repeated.variance == pytest.approx(single.variance)
    assert seed_spread(np.zeros(30), noise, weights * 7, None, slope=1.0).variance == pytest.approx(single.variance)


def test_more_seeds_reach_a_half_width() -> None:
    spread = SeedSpread(3, 0.01**2)
    needed = spread.seeds_needed(spread.half_width(0.05) / 2, 0.05)
    assert needed == 5  # 2.776 * sqrt(3 / 5) is half of 4.303, and 3.182 * sqrt(3 / 4) is more
    assert spread.seeds_needed(0.0, 0.05) is None
    assert spread.seeds_needed(1e-6, 0.05) is None
    assert SeedSpread().half_width(0.05) == 0
