"""The verdict on a tuned model: one record. `evaluate` writes it to `verdict.json`; all other readers load it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MAX_FAILED_SHARE = 0.05
MIN_SEEDS = 3
"""The smallest number of training seeds that shows how much training varies."""
# Fields of a comparison that its entry of `metrics` lacks.
_NOT_OF_EVERY_METRIC = ("min_gain", "failed", "by_row", "improved", "worsened")
_ONLY_OF_SEVERAL_SEEDS = ("seeds", "seeds_needed")

Health = Mapping[str, Mapping[str, Any]]
"""{"base" | "tuned": counts of empty, cut-off and failed answers}."""


def too_many_failed(failed: int, rows: int) -> bool:
    """Return whether more than `MAX_FAILED_SHARE` of all rows failed: the others do not represent the test set."""
    return failed > MAX_FAILED_SHARE * rows


@dataclass(frozen=True, slots=True)
class SeedGain:
    """The score and the gain of the model that was trained with one seed; the interval covers the choice of rows."""

    seed: int
    tuned: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of base and tuned on the same rows.

    Attributes:
        base, tuned: the scores, in the metric's own direction.
        gain: improvement, so positive is better even if lower values are; `low` and `high` are the ends of its
            interval at `confidence`. All are in the unit of the metric.
        rows: rows that were compared; `failed` rows, which one of the models could not answer, were left out.
        groups: independent units among the rows; `rows` if no rows belong together.
        rows_needed, groups_needed: estimates of how many would settle the verdict if gain and noise stay as they are;
            None if it is settled, or if the gain is too close to `min_gain`. More rows of the same groups do not help.
        min_gain: the gain that the interval must exceed.
        by_row: the interval if each row counted as independent; None if it was not computed.
        improved, worsened: rows with a higher and a lower score; None if read from verdict.json, which lacks them.
        seeds: the gain of each seed if several were trained, the run's own first. Then `tuned` and `gain` are means
            over the seeds, and the interval covers the choice of rows and of seeds.
        seeds_needed: an estimate of how many seeds would settle the verdict; None if rows would, or if none is given.
    """

    metric: str
    base: float
    tuned: float
    gain: float
    low: float
    high: float
    confidence: float
    rows: int
    groups: int
    rows_needed: int | None = None
    groups_needed: int | None = None
    higher_is_better: bool = True
    min_gain: float = 0.0
    failed: int = 0
    by_row: tuple[float, float] | None = None
    improved: int | None = None
    worsened: int | None = None
    seeds: tuple[SeedGain, ...] = ()
    seeds_needed: int | None = None

    @property
    def too_many_failed(self) -> bool:
        """Whether so many rows failed that the compared rows do not represent the test set."""
        return too_many_failed(self.failed, self.rows + self.failed)

    @property
    def own(self) -> SeedGain | None:
        """The gain of the run's own model; None unless several seeds were trained. The verdict is about their mean."""
        return self.seeds[0] if self.seeds else None

    @property
    def verdict(self) -> Literal["better", "not_better", "cannot_tell"]:
        """`better` if the interval is above `min_gain`, `not_better` if it is not, `cannot_tell` if it contains it.

        If too many rows failed, it is always `cannot_tell`.
        """
        if self.too_many_failed:
            return "cannot_tell"
        return "better" if self.low > self.min_gain else "not_better" if self.high <= self.min_gain else "cannot_tell"

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as an entry of `metrics` in verdict.json."""
        left_out = {*_NOT_OF_EVERY_METRIC, *(() if self.seeds else _ONLY_OF_SEVERAL_SEEDS)}
        entry = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {**entry, "seeds": list(entry["seeds"])} if self.seeds else entry


@dataclass(frozen=True, slots=True)
class Guard:
    """A metric that must not get worse by more than `max_drop`, on the test rows or on the further held-out `set`."""

    comparison: Comparison
    max_drop: float
    set: str | None = None

    @property
    def name(self) -> str:
        """The metric, with the name of the set: `token_accuracy on general`."""
        return self.comparison.metric if self.set is None else f"{self.comparison.metric} on {self.set}"

    @property
    def passed(self) -> bool:
        """Whether the interval excludes a larger drop, also that of the run's own model if several seeds were trained.

        If too many rows failed, it does not.
        """
        own = self.comparison.own
        low = self.comparison.low if own is None else min(self.comparison.low, own.low)
        return low >= -self.max_drop and not self.comparison.too_many_failed

    def to_json(self) -> dict[str, Any]:
        """Return the guard as an entry of `guards` in verdict.json."""
        change = {key: getattr(self.comparison, key) for key in ("gain", "low", "high")}
        guard = {"metric": self.comparison.metric, "max_drop": self.max_drop, **change, "passed": self.passed}
        return guard if self.set is None else {**guard, "set": self.set}


@dataclass(frozen=True, slots=True)
class SetResult:
    """The comparison on a further held-out set.

    Attributes:
        rows: rows of the set, with those that failed.
        metrics: all metrics of the set; a guard decides by one of them.
        health: problems of the answers; empty if no metric needs answers.
    """

    rows: int
    metrics: Mapping[str, Comparison]
    health: Health = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as an entry of `also` in verdict.json."""
        metrics = {name: comparison.to_json() for name, comparison in self.metrics.items()}
        return {"rows": self.rows, "metrics": metrics, "health": dict(self.health)}


@dataclass(frozen=True, slots=True)
class GroupChange:
    """The mean of the primary metric over the rows of one group. `gain` is improvement."""

    group: str
    rows: int
    base: float
    tuned: float
    gain: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """How groups of rows changed in the primary metric; `fell` holds those that fell most.

    `by` is the column by which rows are grouped; None if rows with the same prompt are.
    """

    by: str | None
    groups: int
    rows: int
    improved: int
    worsened: int
    fell: tuple[GroupChange, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the grouping as it is in verdict.json."""
        return {**asdict(self), "fell": [asdict(change) for change in self.fell]}


@dataclass(frozen=True, slots=True)
class CorpusScores:
    """A score of all answers together, such as corpus BLEU, in the unit of the metric over rows.

    Attributes:
        answers: the answers that both models gave.
        signature: sacrebleu's record of its settings.
    """

    base: float
    tuned: float
    answers: int
    signature: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of base and tuned in all metrics of a recipe; `primary` is the one of `metrics` that decides.

    Attributes:
        corpus: by metric, the scores that published ones compare with, if they are not the means over rows.
        health: problems of the answers.
        digests: digests of the prompts and of both models.
        conditions: precision, quantization, chat markup and added tokens, the same for both models.
        also: the results on further held-out sets, by name; each has a guard.
    """

    primary: Comparison
    metrics: Mapping[str, Comparison]
    guards: tuple[Guard, ...] = ()
    grouping: Grouping | None = None
    reasons: tuple[str, ...] = ()
    corpus: Mapping[str, CorpusScores] = field(default_factory=dict)
    health: Health = field(default_factory=dict)
    digests: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, SetResult] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of verdict.json."""
        primary = {**self.primary.to_json(), "min_gain": self.primary.min_gain, "failed": self.primary.failed}
        if self.primary.by_row is not None:
            primary["by_row"] = dict(zip(("low", "high"), self.primary.by_row, strict=True))
        return {
            "verdict": self.primary.verdict,
            "primary": primary,
            "metrics": {name: comparison.to_json() for name, comparison in self.metrics.items()},
            **({"corpus": {name: asdict(scores) for name, scores in self.corpus.items()}} if self.corpus else {}),
            "guards": [guard.to_json() for guard in self.guards],
            "grouping": self.grouping.to_json() if self.grouping else None,
            "reasons": list(self.reasons),
            "health": dict(self.health),
            "digests": dict(self.digests),
            "conditions": dict(self.conditions),
            **({"also": {name: found.to_json() for name, found in self.also.items()}} if self.also else {}),
        }
