"""Numbers of repeated measurements: rates, medians, and ratios of what was measured in turns."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A trainer's first steps make what later ones use: compiled code, primitives for new shapes, optimiser state.
LEFT_OUT = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeats, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one value or more."""
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        """Return it as plain numbers, to four places that count."""
        return {key: significant(value) for key, value in asdict(self).items()}


def significant(value: float, digits: int = 4) -> float:
    """Return a number without the digits that no measurement here has."""
    return float(f"{value:.{digits}g}")


def rate(steps: Sequence[dict[str, Any]], leave_out: int = LEFT_OUT) -> float | None:
    """Return tokens a second over the steps after the first few; of who is so slow that it took no more, the last."""
    leave_out = min(leave_out, len(steps) - 1)
    counted = [step for step in steps if step["step"] > leave_out]
    seconds = sum(step["seconds"] for step in counted)
    return sum(step["tokens"] for step in counted) / seconds if counted and seconds > 0 else None


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Return ours / theirs of every repeat in which both were measured: they ran one after the other."""
    return [one / other for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
