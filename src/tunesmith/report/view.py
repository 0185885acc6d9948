"""What a report shows, as plain records. `collect` fills them, `render` and `text` only read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.scoring.metrics import find_metric

StageState = Literal["done", "unfinished", "missing", "not asked for"]
Outcome = Literal["fixed", "broken", "right", "wrong", "even", "unknown"]


def is_share(metric: str, values: Iterable[float]) -> bool:
    """Say whether some values of a metric are shares of 1, shown in percent, rather than plain numbers."""
    known = find_metric(metric)
    return (known is None or known.is_share) and max(map(abs, values), default=0.0) <= 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run: whether its manifest stands, and how long it took."""

    name: str
    state: StageState
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """One metric of base and tuned. `gain` is improvement, so positive is better also if lower values are.

    `groups` is the number of independent units and `by_row` the interval that would count every row as one. `failed`
    rows were left out.
    """

    metric: str
    base: float | None
    tuned: float | None
    gain: float
    low: float
    high: float
    confidence: float
    rows: int | None
    higher_is_better: bool
    rows_needed: int | None
    min_gain: float
    groups: int | None = None
    groups_needed: int | None = None
    by_row: tuple[float, float] | None = None
    failed: int = 0

    @property
    def is_share(self) -> bool:
        """Whether values are shares of 1, shown in percent, rather than plain numbers such as perplexity."""
        return is_share(self.metric, [number for number in (self.base, self.tuned) if number is not None])


@dataclass(frozen=True, slots=True)
class Guard:
    """A metric that must not fall by more than `max_drop`, and what it did."""

    change: Gain
    max_drop: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Grouping:
    """Rows that depend on one another: the column they share (None: they ask the same), and how the groups moved.

    `fell` holds (name, rows, change) of the groups that fell most.
    """

    by: str | None
    groups: int
    rows: int
    improved: int
    worsened: int
    fell: tuple[tuple[str, int, Gain], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What evaluation concluded. `health` maps base and tuned to counts of answers gone wrong.

    `reasons` are those that the headline does not give.
    """

    verdict: str
    primary: Gain
    metrics: tuple[Gain, ...]
    guards: tuple[Guard, ...]
    reasons: tuple[str, ...]
    health: dict[str, dict[str, Any]]
    grouping: Grouping | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """The curves: steps are (step, loss, learning rate), valid are (step, loss, token accuracy).

    `scores` maps a metric of the answers to valid rows to (step, mean).
    `machine` maps a measure (`memory_gib`, `host_cpu`) to (seconds of training, value), pauses between sessions left
    out.
    """

    steps: tuple[tuple[int, float, float], ...]
    valid: tuple[tuple[int, float, float | None], ...]
    scores: dict[str, tuple[tuple[int, float], ...]]
    facts: dict[str, Any]
    machine: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, slots=True)
class Side:
    """What one model answered to one row, and its scores."""

    text: str
    scores: dict[str, float]
    error: str | None
    stopped: bool | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One held-out row with both answers. `prompt` is what is not common to all prompts."""

    number: int
    prompt: str
    reference: str | None
    base: Side | None
    tuned: Side | None
    outcome: Outcome
    gain: float | None

    @property
    def changed(self) -> bool:
        """Whether base and tuned answered differently."""
        return self.base is not None and self.tuned is not None and self.base.text != self.tuned.text


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers; `opening` and `closing` are the lines that every prompt shares, kept once."""

    metric: str | None
    opening: str
    closing: str
    rows: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Everything one report shows. Parts of stages that did not happen are empty or None."""

    name: str
    run_id: str
    recipe: str
    resolved: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[Stage, ...]
    prepared: dict[str, Any]
    lost_rows: dict[tuple[str, str], list[int]]
    samples: tuple[dict[str, Any], ...]
    training: Training | None
    verdict: Verdict | None
    answers: Answers | None
    promotion: dict[str, Any]
    problems: tuple[str, ...]
