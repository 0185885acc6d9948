"""Recognize the kind of answers, and name the metrics that fit it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.scoring.metrics import score
from tunesmith.scoring.tool_calls import parse_calls
from tunesmith.scoring.unscorable import unscorable_rows

_SQL = re.compile(r"\s*(select|with|insert|update|delete)\b.+\b(from|into|set)\b.+", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"\s*[-+$€£]?\d[\d,.]*\s*%?\s*")
_MAX_LABELS, _MAX_LABEL_CHARACTERS = 50, 60
_MIN_ROWS_PER_LABEL = 5
_SHORT_WORDS, _SHORT_BYTES = 4, 40
_MOST = 0.95


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """Metrics for a kind of answers.

    Attributes:
        metrics: the names for `evaluate.metrics`.
        primary: the one that decides.
        reason: why these, for a comment.
        labels: the distinct answers if they are few, the most frequent first.
    """

    metrics: tuple[str, ...]
    primary: str
    reason: str
    labels: tuple[str, ...] = ()


def recognize_answers(answers: Sequence[str]) -> AnswerKind:
    """Return the metrics that fit answers. A metric that rejects an answer is used only if all are accepted."""
    calls = [parse_calls(answer) or [] for answer in answers]
    if all(calls) and sum(any(call.arguments for call in each) for each in calls) > 0.5 * len(calls):
        reason = "the answers are tool calls; their names and arguments are compared"
        return AnswerKind(("tool_call", "tool_call_name", "tool_call_f1"), "tool_call_f1", reason)
    counts = Counter(answer.strip() for answer in answers)
    longest = max(map(len, counts))
    if len(counts) <= min(_MAX_LABELS, len(answers) // _MIN_ROWS_PER_LABEL) and longest <= _MAX_LABEL_CHARACTERS:
        return _labels(counts, len(answers))
    are_json = sum(score(answers, answers, ["json_valid"])["json_valid"])
    if _share(answers, _NUMBER) >= _MOST:
        return AnswerKind(("exact_match",), "exact_match", "the answers are numbers")
    if are_json == len(answers):
        metrics = ("json_valid", "json_field_f1", "exact_match")
        return AnswerKind(metrics, "json_field_f1", "the answers are JSON; fields are compared by path and value")
    if are_json >= _MOST * len(answers):
        invalid = (
            f"{len(answers) - are_json:,.0f} of {len(answers):,} answers are not JSON; json_field_f1 needs all to be"
        )
        return AnswerKind(("json_valid", "exact_match"), "exact_match", invalid)
    if _share(answers, _SQL) >= _MOST:
        reason = "the answers are SQL; with `database: FILE.sqlite`, `execution` compares the results of the queries"
        return AnswerKind(("exact_match", "rougeL"), "exact_match", reason)
    if len(unscorable_rows("rougeL", answers)) > 0.1 * len(answers):
        return AnswerKind(
            ("chrf", "exact_match"), "chrf", "the answers have few words between blanks that ROUGE counts"
        )
    if sum(map(_is_short, answers)) >= _MOST * len(answers):
        reason = "the answers are a few words; rougeL if wording may differ"
        return AnswerKind(("exact_match", "rougeL"), "exact_match", reason)
    return AnswerKind(("rouge",), "rougeL", "the answers are prose; exact_match if only one wording is right")


def _labels(counts: Counter[str], total: int) -> AnswerKind:
    [(label, most), *_] = counts.most_common(1)
    reason = f"{len(counts)} different answers; always answering {label!r} is right for {most / total:.0%}"
    return AnswerKind(("exact_match",), "exact_match", reason, tuple(label for label, _ in counts.most_common()))


def _is_short(answer: str) -> bool:
    return len(answer.split()) <= _SHORT_WORDS and len(answer.encode("utf-8", "replace")) <= _SHORT_BYTES


def _share(answers: Sequence[str], pattern: re.Pattern[str]) -> float:
    return sum(pattern.fullmatch(answer) is not None for answer in answers) / len(answers)
