"""Quantiles of Student's t distribution."""

import math
from statistics import NormalDist

# From here on, the series is off by less than 1e-5, and takes no loop over the degrees of freedom.
_MANY = 30


def student_t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t with a whole number of degrees of freedom, for a probability above 0.5.

    With few degrees of freedom, the distribution function (Abramowitz & Stegun 26.7.3 and 26.7.4) is inverted by
    bisection; with many, it is their series 26.7.5.
    """
    if freedom >= _MANY:
        return _series(NormalDist().inv_cdf(probability), freedom)
    low, high = 0.0, 1.0
    while _probability_within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _series(normal: float, freedom: int) -> float:
    """Return the quantile for the normal quantile of the same probability."""
    x, v = normal, freedom
    return (
        x
        + (x**3 + x) / (4 * v)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * v**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * v**3)
    )


def _probability_within(value: float, freedom: int) -> float:
    """Return the probability that Student's t is between -value and value."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine, is_odd = math.cos(angle), freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for number in range(2 + is_odd, freedom - 1, 2):
        term *= (number - 1) / number * cosine**2
        total += term
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
