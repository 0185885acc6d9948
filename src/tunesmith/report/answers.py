"""Base's and tuned's answers to the same rows, side by side, with the words that differ from the reference."""

import difflib
import re
from contextlib import suppress
from typing import Any, Literal

from tunesmith.core.records import is_number
from tunesmith.core.verdict import Comparison
from tunesmith.report.view import Answer, Answers, Outcome, Side
from tunesmith.scoring.metrics import find_metric

Segment = tuple[Literal["same", "extra", "missing"], str]
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without spaces: each character is a word
_WORD = re.compile(rf"\s*(?:[{_CJK}]|[^\W{_CJK}]+|[^\w\s])")
_MOST_WORDS = 400  # matching is quadratic; longer texts are shown without marks
_TOO_DIFFERENT = 0.3  # below this similarity every word would be marked, which says nothing
_NOT_SCORES = frozenset({"id", "row", "log_likelihood", "tokens", "correct"})

Lines = list[dict[str, Any]]


def pair_answers(generations: dict[str, Lines], scores: dict[str, Lines], primary: Comparison | None) -> Answers:
    """Join both models' generations and scores by row id; `primary` decides which answers count as right."""
    told = {name: _by_id(lines) for name, lines in generations.items()}
    scored = {name: _by_id(lines) for name, lines in scores.items()}
    keys = list(told["base"] or told["tuned"])
    facts = {key: told["base"].get(key) or told["tuned"][key] for key in keys}
    prompts = [str(facts[key].get("prompt") or "") for key in keys]
    opening, closing = shared_lines(prompts)
    metric = primary.metric if primary else None
    sides = {
        key: tuple(_side(told[name].get(key), scored[name].get(key, {}), metric) for name in ("base", "tuned"))
        for key in keys
    }
    graded = _is_graded([side for pair in sides.values() for side in pair if side], metric)
    rows = []
    for key, prompt in zip(keys, prompts, strict=True):
        base, tuned = sides[key]
        reference = facts[key].get("reference")
        own = prompt[len(opening) : len(prompt) - len(closing)]
        outcome, gain = _outcome(base, tuned, primary, graded)
        rows.append(Answer(int(facts[key].get("row") or 0), own, reference, base, tuned, outcome, gain))
    return Answers(metric, opening, closing, tuple(rows))


def shared_lines(prompts: list[str]) -> tuple[str, str]:
    """Return the leading and the trailing whole lines that all prompts have in common."""
    if len(prompts) < 2 or len(set(prompts)) == 1:
        return "", ""
    opening = _common_start(min(prompts), max(prompts))
    opening = opening[: opening.rfind("\n") + 1]
    rests = [prompt[len(opening) :][::-1] for prompt in prompts]
    closing = _common_start(min(rests), max(rests))[::-1]
    at = closing.find("\n")
    return opening, closing[at:] if at >= 0 else ""


def marks(prediction: str, reference: str | None) -> list[Segment]:
    """Split a prediction into words that agree with the reference, extra ones, and places where some are missing."""
    if not reference or not prediction or prediction == reference:
        return [("same", prediction)] if prediction else []
    ours, theirs = _words(prediction), _words(reference)
    if max(len(ours), len(theirs)) > _MOST_WORDS:
        return [("same", prediction)]
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in ours], [w.strip() for w in theirs], autojunk=False)
    if matcher.ratio() < _TOO_DIFFERENT:
        return [("extra", prediction)]
    found: list[Segment] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        text = "".join(ours[i1:i2])
        if tag == "equal":
            found.append(("same", text))
            continue
        if j1 != j2:
            found.append(("missing", "".join(theirs[j1:j2]).strip()))
        if i1 != i2:
            space = text[: len(text) - len(text.lstrip())]
            found += [("same", space), ("extra", text[len(space) :])]
    found.append(("same", prediction[len("".join(ours)) :]))
    return [segment for segment in found if segment[1]]


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _common_start(first: str, last: str) -> str:
    """Return the common start of two strings; of the least and the greatest of many it is that of all."""
    for index, (ours, theirs) in enumerate(zip(first, last, strict=False)):
        if ours != theirs:
            return first[:index]
    return min(first, last, key=len)


def _by_id(lines: Lines) -> dict[tuple[str, int], dict[str, Any]]:
    """Key lines by (id, how often it came before), because equal rows have equal ids."""
    seen: dict[str, int] = {}
    keyed = {}
    for line in lines:
        name = str(line.get("id"))
        keyed[(name, seen.get(name, 0))] = line
        seen[name] = seen.get(name, 0) + 1
    return keyed


def _side(generation: dict[str, Any] | None, scores: dict[str, Any], metric: str | None) -> Side | None:
    if generation is None:
        return None
    numbers = {name: float(number) for name, number in scores.items() if name not in _NOT_SCORES and is_number(number)}
    known = find_metric(metric) if metric and metric not in numbers else None
    if known and known.likelihood and scores.get("tokens") and known.likelihood.column in scores:
        with suppress(OverflowError):  # so unlikely a row has no perplexity
            numbers[known.name] = known.likelihood.value(known.likelihood.mean(scores))
    text = str(generation.get("prediction") or "")
    return Side(text, numbers, generation.get("error"), generation.get("stopped"))


def _is_graded(sides: list[Side], metric: str | None) -> bool:
    """Say whether scores lie between wrong (0) and right (1), as ROUGE's do."""
    return any(side.scores.get(metric or "", 0.0) not in (0.0, 1.0) for side in sides)


def _outcome(
    base: Side | None, tuned: Side | None, primary: Comparison | None, graded: bool
) -> tuple[Outcome, float | None]:
    before = base.scores.get(primary.metric) if base and primary else None
    after = tuned.scores.get(primary.metric) if tuned and primary else None
    if before is None or after is None or primary is None:
        return "unknown", None
    gain = after - before if primary.higher_is_better else before - after
    if abs(gain) > 1e-9:
        return ("fixed" if gain > 0 else "broken"), gain
    if graded:
        return "even", 0.0
    return ("right" if after == float(primary.higher_is_better) else "wrong"), 0.0
