"""Statistics of repeated measurements: rates, medians, and ratios of alternating runs."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# The first steps prepare later ones: compiled code, primitives for new shapes, optimizer state.
LEFT_OUT = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the range of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median and range of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        """Return the numbers with four significant digits."""
        return {key: significant(value) for key, value in asdict(self).items()}


def significant(value: float, digits: int = 4) -> float:
    """Return a number with four significant digits."""
    return float(f"{value:.{digits}g}")


def rate(steps: Sequence[dict[str, Any]], leave_out: int = LEFT_OUT) -> float | None:
    """Return the tokens per second of the steps after the first few, or of the last step if there are no more."""
    leave_out = min(leave_out, len(steps) - 1)
    counted = [step for step in steps if step["step"] > leave_out]
    seconds = sum(step["seconds"] for step in counted)
    return sum(step["tokens"] for step in counted) / seconds if counted and seconds > 0 else None


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Return our speed divided by theirs for each repeat in which both, one after the other, were measured."""
    return [value / other for value, other in zip(ours, theirs, strict=True) if value is not None and other is not None]
