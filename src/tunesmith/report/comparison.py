"""The comparison of several models on one run's test rows, as JSON and as text for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.records import Example
from tunesmith.core.verdict import Comparison, Verdict
from tunesmith.report import wording
from tunesmith.report.text import answer_field, prediction_text, prompt_field, table
from tunesmith.report.unit import NONE, unit_of
from tunesmith.report.view import ModelAnswer
from tunesmith.report.wording import visible

# The counts of `ComparedModel.health` that are listed next to its scores.
_PROBLEMS = {"failed": "failed", "empty": "empty", "cut_off": "cut off at the token limit"}


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model with its answers to the rows.

    Attributes:
        name: the reference that the user gave.
        scores: the lines of `scores.jsonl`, in the order of the rows.
        answers: the lines of `generations.jsonl` of each row, one for each sample; none for a row that was not asked.
        health: counts of empty, cut-off and failed answers.
        reads_run_tokens: whether it has likelihoods of the same tokens as the models of the run.
    """

    name: str
    digest: str
    scores: tuple[Mapping[str, Any], ...]
    answers: tuple[tuple[Mapping[str, Any], ...], ...]
    health: Mapping[str, int]
    reads_run_tokens: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """The verdict on a pair of models, given by their places; `first` has the place of the base in it."""

    first: int
    second: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Several models on the test rows of a run; all intervals hold together at `confidence` (Bonferroni)."""

    run: str
    metric: str
    confidence: float
    models: tuple[ComparedModel, ...]
    pairs: tuple[Pair, ...]
    examples: tuple[Example, ...]
    references: tuple[str | list[str], ...]

    def to_json(self, rows: int) -> dict[str, Any]:
        """Return the comparison with the answers to `rows` rows."""
        return {
            "on": self.run,
            "rows": len(self.examples),
            "metric": self.metric,
            "confidence": self.confidence,
            "correction": f"Bonferroni over {len(self.pairs)} pairs" if len(self.pairs) > 1 else None,
            "models": [
                {"name": model.name, "digest": model.digest, "scores": self._means(place), "health": dict(model.health)}
                for place, model in enumerate(self.models)
            ],
            "pairs": [
                {
                    "first": self.models[pair.first].name,
                    "second": self.models[pair.second].name,
                    **pair.verdict.to_json(),
                }
                for pair in self.pairs
            ],
            "answers": [
                {
                    "row": self.examples[place].row,
                    "reference": self.references[place],
                    "predictions": {
                        model.name: _prediction(model.answers[place][0]) if model.answers[place] else None
                        for model in self.models
                    },
                }
                for place in self._shown(rows)
            ],
        }

    def to_text(self, rows: int) -> str:
        """Return the scores, the verdicts and the answers to `rows` rows; rows with different answers come first."""
        number = wording.count(len(self.examples))
        blocks = [f"{len(self.models)} models on {number} test rows of {self.run}", "\n".join(self._table())]
        sentences = [self.sentence(pair) for pair in self.pairs]
        sentences += [*self.corpus_sentences(), *self.reasons()]
        blocks.append("\n".join(sentences))
        blocks += [self._answers(place) for place in self._shown(rows)]
        if (hidden := len(self.examples) - rows) > 0:
            blocks.append(f"{wording.count(hidden)} more rows")
        return visible("\n\n".join(blocks)) + "\n"

    def _comparisons(self, place: int) -> dict[str, tuple[Comparison, float]]:
        """Return {metric: (a comparison with the model, the model's score)}."""
        found: dict[str, tuple[Comparison, float]] = {}
        for pair in self.pairs:
            if place in (pair.first, pair.second):
                for name, one in pair.verdict.metrics.items():
                    found.setdefault(name, (one, one.base if place == pair.first else one.tuned))
        return found

    def _means(self, place: int) -> dict[str, float]:
        return {name: value for name, (_, value) in self._comparisons(place).items()}

    def scores(self) -> tuple[list[str], list[list[str]]]:
        """Return the labels of all metrics, and for each model its scores as text."""
        of_models = [self._comparisons(place) for place in range(len(self.models))]
        names = list(dict.fromkeys(name for found in of_models for name in found))
        return [wording.metric_label(name) for name in names], [
            [unit_of(found[name][0]).value(found[name][1]) if name in found else NONE for name in names]
            for found in of_models
        ]

    def _table(self) -> list[str]:
        labels, scores = self.scores()
        lines = [["model", *labels, ""]]
        for model, cells in zip(self.models, scores, strict=True):
            problems = [f"{wording.count(n)} {words}" for key, words in _PROBLEMS.items() if (n := model.health[key])]
            lines.append([model.name, *cells, ", ".join(problems)])
        return table(lines)

    def sentence(self, pair: Pair) -> str:
        """Return the verdict on a pair."""
        first, second = (self.models[place].name for place in (pair.first, pair.second))
        return wording.pair_sentence(first, second, pair.verdict.primary)

    def corpus_sentences(self) -> list[str]:
        """Return the corpus scores of all models."""
        names = [model.name for model in self.models]
        return wording.corpus_sentences(*((names[pair.first], names[pair.second], pair.verdict) for pair in self.pairs))

    def reasons(self) -> list[str]:
        """Return the limits of all verdicts; those that not all pairs have begin with the names of the pair."""
        pairs: dict[str, list[str]] = {}
        for pair in self.pairs:
            name = f"{self.models[pair.second].name} against {self.models[pair.first].name}"
            for reason in wording.other_reasons(pair.verdict):
                pairs.setdefault(reason, []).append(name)
        reasons = [
            reason if len(names) == len(self.pairs) else f"{', '.join(names)}: {reason}"
            for reason, names in pairs.items()
        ]
        together = (
            f"The intervals of all {len(self.pairs)} pairs hold together at {100 * self.confidence:g} % (Bonferroni)."
        )
        return [*([together] if len(self.pairs) > 1 else []), *reasons]

    def _shown(self, rows: int) -> list[int]:
        """Return the places of the rows to show: those to which the models gave different answers come first."""

        def agree(place: int) -> bool:
            return len({tuple(map(_prediction, model.answers[place])) for model in self.models}) == 1

        return sorted(range(len(self.examples)), key=agree)[: max(0, rows)]

    def _answers(self, place: int) -> str:
        example, reference = self.examples[place], self.references[place]
        prompts = [answer["prompt"] for model in self.models for answer in model.answers[place]]
        parts = [f"row {example.row}", *([prompt_field(prompts[0])] if prompts else [])]
        parts += [answer_field("reference", text) for text in _as_list(reference)]
        parts += [answer_field(model.name, _answer_text(model.answers[place])) for model in self.models]
        return "\n".join(parts)


def _as_list(reference: str | list[str]) -> Sequence[str]:
    return reference if isinstance(reference, list) else [reference]


def _prediction(answer: Mapping[str, Any]) -> str | None:
    return None if answer["error"] is not None else str(answer["prediction"])


def _answer_text(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return "(not asked)"
    more = [str(line["prediction"]) for line in samples[1:]]
    return prediction_text(ModelAnswer.from_json(samples[0], more=more))
