"""The checks of answers: whether they are the reference's own, whether they end, and whether they score worse."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.verdict import Verdict
from tunesmith.engines.base import Engine, EngineAnswer
from tunesmith.evaluate.run_rows import RunRows
from tunesmith.proof.asking import ask_all, ask_prompts
from tunesmith.proof.checks import common_length
from tunesmith.proof.distributions import preference
from tunesmith.proof.questions import Questions
from tunesmith.proof.record import ANSWERED, SAME, Check, Measure
from tunesmith.proof.reference import Reference
from tunesmith.proof.tolerances import Tolerance
from tunesmith.report.comparison import ComparedModel
from tunesmith.scoring.verdict import failed_text

ANSWERS, VERDICT = "answers", "verdict"


@dataclass(frozen=True, slots=True)
class Asked:
    """The engine's answers to the prompts, as lines of `generations.jsonl`; none if it could not be asked.

    Attributes:
        places: the places of the prompts that were asked.
        has_ids: whether the engine gave the ids of its answers; otherwise they are those of its text.
        impossible: why the engine could not be asked.
    """

    lines: tuple[dict[str, Any], ...] = ()
    places: tuple[int, ...] = ()
    has_ids: bool = True
    impossible: str | None = None


def ask(engine: Engine, questions: Questions, reference: Reference) -> Asked:
    """Let the engine answer the prompts from their ids or, if it takes only conversations, from their messages."""
    limit = questions.prompts.max_new_tokens
    places = [place for place, answer in enumerate(reference.answers) if not answer.line["error"]]
    if not places:
        return Asked(impossible="no prompt leaves room for an answer")
    prompts = [questions.prompts.prompts[place] for place in places]
    found = ask_prompts("proof: answers", engine, prompts, max_new_tokens=limit)
    if found is None:
        places = [place for place in places if questions.messages[place] is not None]
        if not places:
            return Asked(impossible=f"{engine.name} answers conversations, and the prompts are something else")
        found = ask_all(
            "proof: answers",
            lambda place: engine.answer_chat(questions.messages[place] or (), max_new_tokens=limit),
            places,
            unit="conversations",
        )
    if found is None:
        return Asked(impossible=f"{engine.name} gives no answers")
    lines = (_line(reference, questions, *pair) for pair in zip(places, found, strict=True))
    return Asked(tuple(lines), tuple(places), has_ids=all(answer.ids is not None for answer in found))


def _line(reference: Reference, questions: Questions, place: int, answer: EngineAnswer) -> dict[str, Any]:
    """Return an answer as `predict` would give it: cut at the stop strings, and without the template's beginning."""
    ids = answer.ids
    if ids is None:
        ids = tuple(questions.tokenizer.encode_trusted(answer.text))
    stopped, strings = answer.stopped, questions.prompts.stop_strings
    if strings is not None:
        end = next((i for i in range(1, len(ids) + 1) if strings.completed_by_last(ids[:i])), None)
        ids, stopped = ids[:end], stopped or end is not None
    text = questions.task.decode_answer(ids)
    change = {
        "prediction": "" if answer.error else strings.cut(text) if strings else text,
        "ids": list(ids),
        "new_tokens": len(ids),
        "stopped": stopped,
        "error": answer.error,
    }
    return {**reference.answers[place].line, **change}


def check_answers(asked: Asked, questions: Questions, reference: Reference, tolerance: Tolerance) -> Check:
    """Compare answers and their ends with the reference's.

    An answer may differ after a token that the reference itself hardly preferred (`max_gap`).
    """
    if asked.impossible is not None:
        return Check(ANSWERS, impossible=asked.impossible)
    total, equal, undecided, details = len(asked.lines), 0, 0, list[str]()
    pairs = list(zip(asked.places, asked.lines, strict=True))
    for place, line in pairs:
        if line["error"]:
            details.append(str(line["error"]))
        elif _is_same(reference, place, line):
            equal += 1
        elif tolerance.max_gap is not None:
            gap = _gap(reference, questions, asked, place, line)
            undecided += gap <= tolerance.max_gap
            if gap > tolerance.max_gap:
                details.append(f"prompt {place + 1}: the reference prefers its own token by {gap:.2g} nats")
    ending = [line for place, line in pairs if reference.answers[place].stopped]
    ended, may_not_end = sum(line["stopped"] for line in ending), int(tolerance.max_unstopped * len(ending))
    measures = [Measure("equal answers", equal, total)]
    if tolerance.max_gap is not None:
        measures.append(Measure.all_of(SAME, equal + undecided, total))
    measures += [
        Measure("answers that end", ended, len(ending), at_least=len(ending) - may_not_end),
        Measure.all_of(ANSWERED, sum(not line["error"] for line in asked.lines), total),
    ]
    return Check(ANSWERS, tuple(measures), tuple(details[:3]))


def _is_same(reference: Reference, place: int, line: Mapping[str, Any]) -> bool:
    answer = reference.answers[place]
    return (answer.text, answer.stopped) == (line["prediction"], line["stopped"])


def _gap(reference: Reference, questions: Questions, asked: Asked, place: int, line: Mapping[str, Any]) -> float:
    """Return by how many nats the reference preferred its own token to the engine's at the first difference.

    The end of an answer is a token, too. If the engine gives only text, its token is not known, and the
    reference's second choice counts as it.
    """
    expected, found = reference.answer_with_end(place), tuple(line["ids"])
    if asked.has_ids:
        same = common_length(expected, found)
        ended = questions.task.stop_ids if line["stopped"] else ()
        candidates = found[same : same + 1] or ended
    else:
        shared = common_length(reference.answers[place].text, line["prediction"])
        decode, text = questions.task.decode_answer, reference.answers[place].text[:shared]
        same = max(i for i in range(len(expected)) if text.startswith(decode(expected[:i])))
        candidates = ()
    if same >= len(expected):
        return math.inf
    scores = reference.token_scores(place, expected[: same + 1])[-1]
    if not asked.has_ids:
        first, second = sorted(scores.values(), reverse=True)[:2]
        return first - second
    return min((preference(scores, token) for token in candidates), default=math.inf)


def check_verdict(
    engine_name: str, asked: Asked, questions: Questions, reference: Reference, *, max_loss: float | None
) -> tuple[Check, Verdict | None]:
    """Score the answers to the run's test rows, and compare them with the reference's, row by row.

    Args:
        max_loss: the loss in the primary metric that the interval must exclude; None if a loss must only not be shown.
    """
    rows = questions.rows
    if rows is None:
        return Check(VERDICT, impossible=questions.no_rows), None
    if asked.impossible is not None:
        return Check(VERDICT, impossible=asked.impossible), None
    by_place = dict(zip(asked.places, asked.lines, strict=True))
    unasked = {"error": "the prompt is not made of plain messages", "prediction": "", "ids": [], "stopped": False}
    ours = [dict(answer.line) for answer in reference.answers]
    theirs = [by_place.get(place, line if line["error"] else {**line, **unasked}) for place, line in enumerate(ours)]
    try:
        verdict = rows.compare(
            _scored(rows, "fp32", ours), _scored(rows, engine_name, theirs), rows.recipe.evaluate.confidence
        )
    except RecipeError as error:  # the primary metric is computed from likelihoods
        return Check(VERDICT, impossible=error.message), None
    primary = verdict.primary
    if primary.too_many_failed:
        return Check(VERDICT, impossible=failed_text(primary)), verdict
    shown, possible = max(0.0, -primary.high), max(0.0, -primary.low)
    measures = (
        Measure(f"loss of {primary.metric} that is shown", shown, at_most=0.0),
        Measure(f"loss of {primary.metric} that is not excluded", possible, at_most=max_loss),
    )
    return Check(VERDICT, measures), verdict


def _scored(rows: RunRows, name: str, lines: Sequence[dict[str, Any]]) -> ComparedModel:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_jsonl(folder / "generations.jsonl", lines)
        rows.store(name, (list(lines), [{} for _ in lines]), folder)
        return rows.read(name, name, folder)
