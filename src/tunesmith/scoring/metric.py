"""The record of a metric: its label, direction and unit, and the function that computes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

References = Sequence[Sequence[str]]  # [rows][alternatives]: each of a row's references is right
Score = Callable[[Sequence[str], References, Path | None], list[float]]
"""(predictions, references, database) -> one value per row."""

LIKELIHOOD_COLUMNS = ("log_likelihood", "tokens", "correct")  # of a row, for metrics of the references' likelihood


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How to compute a metric from the `LIKELIHOOD_COLUMNS`: from the mean of a column over all tokens.

    Args:
        column: the summed column. A higher sum is better, even if a lower metric is.
        transform_mean: function from the mean to the metric; None for the mean itself.
    """

    column: str
    transform_mean: Callable[[float], float] | None = None

    def mean(self, row: Mapping[str, Any]) -> float:
        """Return the mean over the tokens of a row."""
        return float(row[self.column] / row["tokens"])

    def value(self, mean: float) -> float:
        """Convert a mean over tokens to the metric."""
        return mean if self.transform_mean is None else self.transform_mean(mean)


@dataclass(frozen=True, slots=True)
class Metric:
    """A built-in metric.

    Args:
        label: its name in reports.
        score: function that computes it from answers; None if it needs the model.
        likelihood: how to compute it from the likelihood of the references instead.
        is_share: values are from 0 to 1 and are shown in percent.
        decimals: number of decimals to show if it is not a share.
        one_is_right: the value 1 means that the answer is right, so that pass@k can be computed.
        is_binary: every value is 0 or 1.
    """

    name: str
    label: str
    score: Score | None = None
    likelihood: Likelihood | None = None
    higher_is_better: bool = True
    is_share: bool = True
    decimals: int = 2
    one_is_right: bool = False
    is_binary: bool = False

    @property
    def value_at_zero(self) -> float:
        """The metric if every row has the value 0: 1 for perplexity, whose values are logarithms."""
        return self.likelihood.value(0.0) if self.likelihood else 0.0


def as_lists(references: Sequence[str | Sequence[str]]) -> References:
    """Return each row's references as a list, also if it has one."""
    return [[texts] if isinstance(texts, str) else list(texts) for texts in references]
