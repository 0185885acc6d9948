"""What a metric is: its name for people, which way it counts, its unit, and what computes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

References = Sequence[Sequence[str]]  # any of a row's strings is right
Score = Callable[[Sequence[str], References, Path | None], list[float]]
"""(predictions, references, database) -> one value a row."""

LIKELIHOOD_COLUMNS = ("log_likelihood", "tokens", "correct")  # of a row: what metrics of the likelihood follow from


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How a metric follows from the `LIKELIHOOD_COLUMNS` of rows: the sum of a column by the number of tokens.

    Args:
        column: what is summed up; more of it is better, whichever way the metric counts.
        transform_mean: turns the mean over all tokens into the metric; None if it is the metric.
    """

    column: str
    transform_mean: Callable[[float], float] | None = None

    def mean(self, row: Mapping[str, Any]) -> float:
        """Return the mean over the tokens of one row."""
        return float(row[self.column] / row["tokens"])

    def value(self, mean: float) -> float:
        """Return the metric of a mean over tokens."""
        return mean if self.transform_mean is None else self.transform_mean(mean)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of ours.

    Args:
        label: how people write it.
        score: computes it from answers; None if it needs the model.
        likelihood: computes it from the likelihood of the references instead.
        is_share: values lie between 0 and 1, and are shown in percent.
        decimals: how many are shown if it is no share.
    """

    name: str
    label: str
    score: Score | None = None
    likelihood: Likelihood | None = None
    higher_is_better: bool = True
    is_share: bool = True
    decimals: int = 2

    @property
    def value_at_zero(self) -> float:
        """The metric of a system that gets 0 in every row: 1 for perplexity, whose likelihoods are logarithms."""
        return self.likelihood.value(0.0) if self.likelihood else 0.0
