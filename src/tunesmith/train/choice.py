"""What picks the best checkpoint."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """A value that every validation measures, and which way is better. `by` is its name in `metrics.jsonl`."""

    by: str
    higher_is_better: bool

    def prefers(self, value: float | None, best: float | None) -> bool:
        """Say whether a value beats the best so far; of equal ones the earlier stays.

        What could not be measured (None) or is not finite never does.
        """
        if value is None or not math.isfinite(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)
