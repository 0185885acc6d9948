"""Write the values and gains of a metric in its unit: shares in percent and points, others as plain numbers."""

import math
from dataclasses import dataclass

from tunesmith.core.verdict import Comparison
from tunesmith.scoring.metrics import find_metric

MINUS = "\u2212"
NONE = "\u2013"


@dataclass(frozen=True, slots=True)
class Unit:
    """How numbers of one metric are written.

    Attributes:
        is_share: values are shares of 1. They are shown in percent, and their gains in points.
        decimals: how many a value has.
    """

    is_share: bool
    decimals: int

    @classmethod
    def of(cls, metric: str, *values: float) -> "Unit":
        """Return the unit of a metric; a custom metric is a share if none of its values exceeds 1."""
        known = find_metric(metric)
        if (known is None or known.is_share) and max(map(abs, values), default=0.0) <= 1:
            return cls(True, 1)
        return cls(False, known.decimals if known else 2)

    @property
    def factor(self) -> float:
        """Factor from a metric's values to the numbers shown."""
        return 100.0 if self.is_share else 1.0

    def value(self, number: float | None) -> str:
        """Return a value of the metric: 88.0 % or 12.40."""
        if number is None or not math.isfinite(number):
            return NONE
        return f"{self.factor * number:,.{self.decimals}f}{' %' if self.is_share else ''}"

    def change(self, number: float, decimals: int | None = None) -> str:
        """Return a signed difference without its unit: +86.0 or +4.30."""
        text = f"{abs(self.factor * number):,.{self.decimals if decimals is None else decimals}f}"
        if not text.strip("0.,"):
            return text
        return ("+" if number > 0 else MINUS) + text

    def points(self, number: float) -> str:
        """Return a signed difference with its unit: +5.0 points or +4.30."""
        return f"{self.change(number)} points" if self.is_share else self.change(number)

    def interval(self, low: float, high: float) -> str:
        """Return the interval of a gain: +79.3 to +91.3, with one more decimal if an end would be rounded to 0."""
        vanishes = any(end and not self.change(end).strip("0.,") for end in (low, high))
        decimals = self.decimals + vanishes
        return f"{self.change(low, decimals)} to {self.change(high, decimals)}"


def unit_of(comparison: Comparison) -> Unit:
    """Return the unit of the metric that two models were compared in."""
    return Unit.of(comparison.metric, comparison.base, comparison.tuned)
