"""The records that a report shows. `collect` makes them; `render` and `text` only read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tunesmith.core.verdict import Verdict

StageState = Literal["done", "unfinished", "missing", "not requested"]
Outcome = Literal["fixed", "broken", "mixed", "right", "wrong", "even", "unknown"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage of the run: whether it has a manifest, and its duration."""

    name: str
    state: StageState
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Training:
    """The curves of training.

    Attributes:
        steps: (step, loss, learning rate).
        valid: (step, loss, token accuracy) of each validation.
        scores: {metric: (step, mean score of the answers to valid rows)}.
        facts: the stage's manifest.
        machine: {measure: (seconds of training, value)}, such as `memory_gib` and `host_cpu`, without pauses between
            sessions.
    """

    steps: tuple[tuple[int, float, float], ...]
    valid: tuple[tuple[int, float, float | None], ...]
    scores: dict[str, tuple[tuple[int, float], ...]]
    facts: dict[str, Any]
    machine: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """The answer of one model to one row, and the scores of the row; `more` are the texts of further samples."""

    text: str
    scores: dict[str, float]
    error: str | None
    stopped: bool | None
    more: tuple[str, ...] = ()

    @classmethod
    def from_json(
        cls, line: Mapping[str, Any], scores: Mapping[str, float] = MappingProxyType({}), more: Sequence[str] = ()
    ) -> "ModelAnswer":
        """Return the answer of a line of `generations.jsonl`."""
        text = str(line.get("prediction") or "")
        return cls(text, dict(scores), line.get("error"), line.get("stopped"), tuple(more))


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """A test row with the answers of all models.

    Attributes:
        prompt: the prompt without the lines that all prompts share.
        references: empty if the row has none.
        sides: the answer of each model; None if it was not asked.
        gain: of two models, the gain of the second; of more, the difference between the best and the worst score.
    """

    number: int
    prompt: str
    references: tuple[str, ...]
    sides: tuple[ModelAnswer | None, ...]
    outcome: Outcome
    gain: float | None

    @property
    def reference(self) -> str | None:
        """The references as one text, numbered if there are several; None if there are none."""
        if len(self.references) > 1:
            return "\n".join(f"({number}) {text}" for number, text in enumerate(self.references, 1))
        return self.references[0] if self.references else None

    @property
    def changed(self) -> bool:
        """Whether all models answered, and not all alike."""
        return None not in self.sides and len({_texts(side) for side in self.sides if side}) > 1


def _texts(answer: ModelAnswer) -> tuple[str, ...]:
    return (answer.text, *answer.more)


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers.

    Attributes:
        models: the names of the models, in the order of the sides of each row.
        metric: the primary metric.
        opening, closing: the first and the last lines of the prompts that all of them share.
    """

    models: tuple[str, ...]
    metric: str | None
    opening: str
    closing: str
    rows: tuple[AnswerRow, ...]


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything that a report shows. The parts of stages that have not run are empty or None.

    `incumbents` are the verdicts against versions of the registry, such as `viggo@3`, that a promotion would replace.
    """

    name: str
    run_id: str
    recipe: str
    resolved: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[StageStatus, ...]
    prepared: dict[str, Any]
    unused_rows: dict[tuple[str, str], list[int]]
    samples: tuple[dict[str, Any], ...]
    training: Training
    verdict: Verdict | None
    answers: Answers | None
    incumbents: Mapping[str, Verdict]
    promotion: dict[str, Any]
    exports: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]
