"""What a report shows, as plain records. `collect` fills them, `render` and `text` only read them."""

from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.core.verdict import Verdict

StageState = Literal["done", "unfinished", "missing", "not asked for"]
Outcome = Literal["fixed", "broken", "right", "wrong", "even", "unknown"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run: whether its manifest stands, and how long it took."""

    name: str
    state: StageState
    seconds: float | None


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
