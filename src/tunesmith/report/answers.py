"""The answers of several models to the same rows, side by side, with the words that differ from the reference."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os.path import commonprefix
from typing import Any, Literal

from tunesmith.core.records import is_number
from tunesmith.core.verdict import Comparison
from tunesmith.report.view import AnswerRow, Answers, ModelAnswer, Outcome
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.samples import split_pass

Segment = tuple[Literal["same", "extra", "missing"], str]
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # scripts without spaces: each character counts as a word
_WORD = re.compile(rf"\s*(?:[{_CJK}]|[^\W{_CJK}]+|[^\w\s])")
_MAX_WORDS = 400  # matching is quadratic; in longer texts no words are marked
_MIN_SIMILARITY = 0.3  # below it nearly every word would be marked
_NOT_SCORES = frozenset({"id", "row", "log_likelihood", "tokens", "correct"})

Lines = list[dict[str, Any]]


def pair_answers(generations: dict[str, Lines], scores: dict[str, Lines], primary: Comparison | None) -> Answers:
    """Join the generations and scores of base and tuned by row id."""
    generated = {name: _by_id([line for line in lines if _sample(line) == 1]) for name, lines in generations.items()}
    further = {name: _further_samples(lines) for name, lines in generations.items()}
    scored = {name: _by_id(lines) for name, lines in scores.items()}
    lines = generated["base"] or generated["tuned"]
    metric = primary.metric if primary else None
    sides = [
        tuple(
            model_answer(generated[name].get(key), scored[name].get(key, {}), metric, further[name].get(key[0], ()))
            for name in ("base", "tuned")
        )
        for key in lines
    ]
    return join_answers(("Base", "Tuned"), list(lines.values()), sides, primary)


def join_answers(
    models: Sequence[str], lines: Lines, sides: Sequence[tuple[ModelAnswer | None, ...]], primary: Comparison | None
) -> Answers:
    """Return the answers of several models; the primary metric decides which are right.

    Args:
        lines: a line of `generations.jsonl` for each row, with its number, prompt and reference.
        sides: the answers of all models to each row.
    """
    opening, closing = common_lines([str(line.get("prompt") or "") for line in lines])
    metric = primary.metric if primary else None
    numbers = [side.scores.get(metric or "", 0.0) for row in sides for side in row if side]
    graded = any(number not in (0.0, 1.0) for number in numbers)  # neither wrong nor right, as in ROUGE
    rows = []
    for line, answers in zip(lines, sides, strict=True):
        prompt = str(line.get("prompt") or "")
        row_text = prompt[len(opening) : len(prompt) - len(closing)]
        outcome, gain = _outcome(answers, primary, graded)
        found = line.get("reference")
        references = tuple(found) if isinstance(found, list) else () if found is None else (found,)
        rows.append(AnswerRow(int(line.get("row") or 0), row_text, references, answers, outcome, gain))
    return Answers(tuple(models), metric, opening, closing, tuple(rows))


def common_lines(prompts: list[str]) -> tuple[str, str]:
    """Return the lines that all prompts begin with, and the lines that all prompts end with."""
    if len(prompts) < 2 or len(set(prompts)) == 1:
        return "", ""
    opening = commonprefix(prompts)  # noqa: RUF071 (by characters)
    opening = opening[: opening.rfind("\n") + 1]
    rests = [prompt[len(opening) :][::-1] for prompt in prompts]
    closing = commonprefix(rests)[::-1]  # noqa: RUF071
    line_break = closing.find("\n")
    return opening, closing[line_break:] if line_break >= 0 else ""


def closest_reference(prediction: str, references: Sequence[str]) -> str | None:
    """Return the reference with the most words in common with a prediction; None if there are none."""
    if len(references) < 2:
        return references[0] if references else None
    words = Counter(map(str.strip, _WORD.findall(prediction)))

    def overlap(reference: str) -> float:
        others = Counter(map(str.strip, _WORD.findall(reference)))
        return (words & others).total() / max(1, words.total() + others.total())

    return max(references, key=overlap)


def diff_words(prediction: str, reference: str | None) -> list[Segment]:
    """Split a prediction into words that the reference has and extra words, with the missing words inserted."""
    if not reference or not prediction or prediction == reference:
        return [("same", prediction)] if prediction else []
    predicted, expected = _WORD.findall(prediction), _WORD.findall(reference)
    if max(len(predicted), len(expected)) > _MAX_WORDS:
        return [("same", prediction)]
    matcher = difflib.SequenceMatcher(None, [*map(str.strip, predicted)], [*map(str.strip, expected)], autojunk=False)
    if matcher.ratio() < _MIN_SIMILARITY:
        return [("extra", prediction)]
    segments: list[Segment] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        text = "".join(predicted[i1:i2])
        if tag == "equal":
            segments.append(("same", text))
            continue
        if j1 != j2:
            segments.append(("missing", "".join(expected[j1:j2]).strip()))
        if i1 != i2:
            space = text[: len(text) - len(text.lstrip())]
            segments += [("same", space), ("extra", text[len(space) :])]
    segments.append(("same", prediction[len("".join(predicted)) :]))
    return [segment for segment in segments if segment[1]]


def _by_id(lines: Lines) -> dict[tuple[str, int], dict[str, Any]]:
    """Key lines by (id, number of earlier lines with it), because equal rows have equal ids."""
    seen: Counter[str] = Counter()
    keyed = {}
    for line in lines:
        name = str(line.get("id"))
        keyed[name, seen[name]] = line
        seen[name] += 1
    return keyed


def _sample(line: dict[str, Any]) -> int:
    return int(line.get("sample") or 1)


def _further_samples(lines: Lines) -> dict[str, list[str]]:
    """Return {id of a row: the answers after the first}, in the order of samples."""
    texts: dict[str, list[str]] = {}
    for line in sorted(lines, key=_sample):  # a run may still be writing them
        if _sample(line) > 1:
            texts.setdefault(str(line.get("id")), []).append(str(line.get("prediction") or ""))
    return texts


def model_answer(
    generation: Mapping[str, Any] | None, scores: Mapping[str, Any], metric: str | None, more: Sequence[str]
) -> ModelAnswer | None:
    """Return the answer of a line of `generations.jsonl` with the scores of its line of `scores.jsonl`.

    Args:
        metric: a metric that is shown even if it has no score of each row, such as perplexity.
        more: the texts of further samples.
    """
    if generation is None:
        return None
    numbers = {name: float(number) for name, number in scores.items() if _is_score(name) and is_number(number)}
    known = find_metric(metric) if metric and metric not in numbers else None
    if known and known.likelihood and scores.get("tokens") and known.likelihood.column in scores:
        with suppress(OverflowError):  # of so unlikely a row the perplexity is infinite
            numbers[known.name] = known.likelihood.value(known.likelihood.mean(scores))
    return ModelAnswer.from_json(generation, numbers, more)


def _is_score(name: str) -> bool:
    """Return whether a key of a row is a score to show; pass@k is one of all rows."""
    return name not in _NOT_SCORES and split_pass(name) is None


def _outcome(
    sides: Sequence[ModelAnswer | None], primary: Comparison | None, graded: bool
) -> tuple[Outcome, float | None]:
    """Return how the scores of a row differ, and by how much."""
    found = [side.scores.get(primary.metric) if side and primary else None for side in sides]
    scores = [score for score in found if score is not None]
    if primary is None or len(scores) < len(sides):
        return "unknown", None
    if max(scores) - min(scores) > 1e-9:
        if len(scores) > 2:
            return "mixed", max(scores) - min(scores)
        gain = (scores[1] - scores[0]) * (1 if primary.higher_is_better else -1)
        return ("fixed" if gain > 0 else "broken"), gain
    if graded:
        return "even", 0.0
    return ("right" if scores[0] == float(primary.higher_is_better) else "wrong"), 0.0
