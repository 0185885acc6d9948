"""How much a gain varies with the seed of training, and how that widens the interval over rows.

Several seeds (replicates) are trained and answer the same rows, so rows and seeds are crossed. The mean gain over rows
and seeds has two independent errors: that of the choice of rows, which the bootstrap covers, and that of the choice of
seeds. The variance of the seeds' gains contains noise of the rows, too (which rows a seed gets right). The bootstrap
has counted that already, so it is subtracted: the usual estimate of a variance component (Searle, Casella & McCulloch
1992, "Variance Components", chapter 4).

The two half-widths are combined as the root of the sum of their squares, each with its own quantile: MOVER, Zou &
Donner 2008, "Construction of Confidence Limits about Effect Measures: A General Approach", Statistics in Medicine 27.
The quantile of the seeds is that of Student's t with one degree of freedom less than seeds, so few seeds give a wide
interval. A bootstrap over three seeds would be far too narrow. With two seeds, the interval covers the true gain in as
little as 90 % of simulations, so three is the minimum.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from tunesmith.scoring.bootstrap import Array, sum_by_group
from tunesmith.scoring.student_t import student_t_quantile

_MAX_SEEDS = 100


class SeedSpread(NamedTuple):
    """How much the mean gain varies with the choice of seeds.

    Attributes:
        seeds: the number of seeds.
        variance: the variance of the mean over the seeds, in the unit of the gain; 0 if the seeds do not differ by more
            than the noise of the rows explains.
    """

    seeds: int = 1
    variance: float = 0.0

    def half_width(self, error: float) -> float:
        """Return the half-width that the choice of seeds adds to an interval which fails with probability `error`."""
        if not self.variance:
            return 0.0
        return student_t_quantile(1 - error / 2, self.seeds - 1) * math.sqrt(self.variance)

    def seeds_needed(self, half_width: float, error: float) -> int | None:
        """Return how many seeds would bring the half-width down to a value; None if that takes too many."""
        if half_width <= 0:
            return None
        for seeds in range(self.seeds + 1, _MAX_SEEDS + 1):
            more = SeedSpread(seeds, self.variance * self.seeds / seeds)
            if more.half_width(error) <= half_width:
                return seeds
        return None


ONE_SEED = SeedSpread()
"""No estimate of how much training varies: the interval covers rows only."""


def seed_spread(
    base: Array, by_seed: Array, weights: Array, groups: Sequence[Hashable] | None, slope: float
) -> SeedSpread:
    """Estimate how much the mean gain varies with the choice of seeds.

    Args:
        base: scores of the base [rows].
        by_seed: scores of each seed's model [seeds, rows].
        weights: weights of the mean [rows].
        groups: rows with the same value are not independent.
        slope: the change of the gain when the mean score changes by 1.
    """
    seeds, total = len(by_seed), math.fsum(weights)
    columns = np.column_stack((weights, *(weights * (by_seed - base))))
    sums = columns if groups is None else sum_by_group(columns, groups)
    units, gains = len(sums), np.array([math.fsum(column) for column in sums.T[1:]]) / total
    of_seeds = float(gains.var(ddof=1)) / seeds
    rest = sums[:, 1:] - np.outer(sums[:, 0], gains)
    rest -= rest.mean(axis=1, keepdims=True)
    of_rows = 0.0
    if units > 1:
        mean_square = math.fsum((rest**2).ravel()) / ((units - 1) * (seeds - 1))
        of_rows = mean_square * units / total**2 / seeds
    return SeedSpread(seeds, max(0.0, of_seeds - of_rows) * slope**2)
