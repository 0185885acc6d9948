"""The parts of the report that are computed from a `RunView`: facts, answers, rows as tokens, data and performance."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.core.rundir import SPLITS
from tunesmith.core.verdict import Health
from tunesmith.report import wording
from tunesmith.report.answers import closest_reference, diff_words
from tunesmith.report.collect import UNUSED
from tunesmith.report.machine_chart import utilization
from tunesmith.report.unit import NONE
from tunesmith.report.view import AnswerRow, Answers, ModelAnswer, RunView
from tunesmith.report.wording import visible, visible_token

MAX_EMBEDDED_ROWS = 2_000
MAX_EMBEDDED_CHARACTERS = 6_000_000
MAX_TEXT_CHARACTERS = 4_000
ROWS_WITHOUT_SCRIPT = 20
MAX_SCORES = 6
MAX_SAMPLES = 12
MAX_TOKENS = 1_200

_PROBLEMS = {
    "failed": "Failed with an error",
    "empty": "Empty answers",
    "cut_off": "Cut off at the token limit",
    "unstopped": "Without an end token",
}
_DUPLICATES = {
    "duplicates": "Training rows that duplicate an earlier one",
    "valid": "Validation rows",
    "test": "Test rows",
    "left_out": "Training rows left out, because they duplicate a validation or test row",
}
_MARK_CODES = {"same": 0, "extra": 1, "missing": 2}
_FILTERS = {
    "fixed": ("Fixed", "Better"),
    "broken": ("Broken", "Worse"),
    "right": ("Both right", ""),
    "wrong": ("Both wrong", ""),
    "even": ("", "Equal score"),
}
_FILTERS_OF_SEVERAL = {
    "mixed": ("Not all right", "Different scores"),
    "right": ("All right", ""),
    "wrong": ("All wrong", ""),
    "even": ("", "Equal scores"),
}


def facts(view: RunView) -> list[tuple[str, str]]:
    """Return the facts below the verdict: base, steps, trained parameters, time, machine and promotion."""
    model, trained, promoted = view.settings.get("model") or {}, view.training.facts, view.promotion
    steps, trainable, total = (trained.get(key) for key in ("steps", "trainable_parameters", "all_parameters"))
    of_all = f" of {wording.short_count(total)}" if total else ""
    outcomes = Counter(row.outcome for row in view.answers.rows) if view.answers else Counter()
    fixed, broken = outcomes["fixed"], outcomes["broken"]
    seconds = sum(stage.seconds or 0 for stage in view.stages)
    names = [promoted.get(key, "") for key in ("model", "version", "alias")]
    rows = [
        ("Base model", model.get("base")),
        ("Training", steps and f"{wording.count(steps)} steps"),
        ("Trained parameters", trainable and wording.short_count(trainable) + of_all),
        ("Rows better / worse", (fixed or broken) and f"{fixed:,} / {broken:,}"),
        ("Time", seconds and wording.duration(seconds)),
        ("Machine", view.environment.get("device")),
        ("Promoted", promoted and "{} {} \u2192 {}".format(*names)),
    ]
    return [(name, str(text)) for name, text in rows if text]


def pair_problems(health: Health) -> list[tuple[str, list[tuple[str, str]], bool]]:
    """Return the problems of the answers of base and tuned, as `answer_problems` does."""
    return answer_problems([health.get(subject, {}) for subject in ("base", "tuned")])


def answer_problems(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]], bool]]:
    """Return (problem, [(count, percentage) of each model], whether the last model has it more often than the first).

    Args:
        models: the counts of each model (`Verdict.health`).
    """
    rows = []
    for key, name in _PROBLEMS.items():
        cells, rates = [], []
        for counts in models:
            total, number = counts.get("rows"), counts.get(key)
            if key == "unstopped" and total is not None and counts.get("stopped") is not None:
                number = total - counts["stopped"]
            cells.append((wording.count(number), wording.percent(number, total)))
            rates.append(number / total if number is not None and total else 0.0)
        rows.append((name, cells, rates[-1] > rates[0]))
    return rows


def answer_filters(answers: Answers) -> list[tuple[str, str, int]]:
    """Return (key, label, number of rows) of the filters that apply to these answers."""
    outcomes = Counter[str](row.outcome for row in answers.rows)
    graded = outcomes["even"] > 0 or not (outcomes["right"] or outcomes["wrong"])
    filters = [("all", "All", len(answers.rows))]
    if outcomes["unknown"] < len(answers.rows):
        labels = _FILTERS_OF_SEVERAL if len(answers.models) > 2 else _FILTERS
        filters += [(key, names[graded], outcomes[key]) for key, names in labels.items() if names[graded]]
    changed = "Different answers" if len(answers.models) > 2 else "Changed"
    filters.append(("changed", changed, sum(row.changed for row in answers.rows)))
    return filters


def select_embedded(answers: Answers) -> list[AnswerRow]:
    """Return the rows that the file holds, up to the limits: first those that got better or worse, then the others."""
    changed_first = sorted(range(len(answers.rows)), key=lambda index: answers.rows[index].gain in (None, 0.0))
    chosen, characters_left = [], MAX_EMBEDDED_CHARACTERS
    for index in changed_first[:MAX_EMBEDDED_ROWS]:
        row = answers.rows[index]
        texts = [
            row.prompt,
            row.reference or "",
            *(text for side in row.sides if side for text in (side.text, *side.more)),
        ]
        characters_left -= sum(min(len(text), MAX_TEXT_CHARACTERS) for text in texts)
        if characters_left < 0:
            break
        chosen.append(index)
    return [answers.rows[index] for index in sorted(chosen)]


def answer_payload(answers: Answers) -> dict[str, Any]:
    """Return the embedded rows, each a list in the order of `fields`, with visible texts and marked differences."""
    rows = select_embedded(answers)
    sides = [side for row in rows for side in row.sides if side]
    names = sorted({name for side in sides for name in side.scores}, key=lambda name: (name != answers.metric, name))
    names = names[:MAX_SCORES]
    binary = {name for name in names if all(side.scores.get(name, 0.0) in (0.0, 1.0) for side in sides)}

    def side_of(side: ModelAnswer | None, references: Sequence[str]) -> list[Any] | None:
        if side is None:
            return None
        segments = diff_words(_clip(side.text), closest_reference(side.text, references))
        marked = [text if kind == "same" else [_MARK_CODES[kind], text] for kind, text in segments]
        values = [_score(side.scores.get(name), name in binary) for name in names]
        return [marked, values, answer_note(side), [_clip(text) for text in side.more]]

    entries = []
    for row in rows:
        reference = None if row.reference is None else _clip(row.reference)
        references = [_clip(text) for text in row.references]
        marked = [side_of(side, references) for side in row.sides]
        gain = None if row.gain is None else round(row.gain, 6)
        prompt = _clip(row.prompt.strip("\n"))
        entries.append([row.number, prompt, reference, row.outcome, int(row.changed), gain, marked])
    return {
        "fields": ["number", "prompt", "reference", "outcome", "changed", "gain", "sides"],
        "models": list(answers.models),
        "scores": [wording.metric_label(name) for name in names],
        "badges": {key: name for key, name, _ in answer_filters(answers)},
        "has_reference": any(row.reference is not None for row in rows),
        "code_like": _looks_like_code("".join(row.reference or "" for row in rows[:100])),
        "rows": entries,
    }


def token_rows(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sample rows with at most `MAX_TOKENS` tokens each; line breaks and tabs are drawn."""
    rows = []
    for sample in list(samples)[:MAX_SAMPLES]:
        tokens = sample.get("tokens", [])
        plain = {"id": "", "trained": False, "special": False}
        shown = [{**plain, **token, "text": visible_token(str(token.get("text", "")))} for token in tokens[:MAX_TOKENS]]
        trained = sum(bool(token.get("trained")) for token in tokens)
        rows.append({**sample, "tokens": shown, "total": len(tokens), "trained": trained})
    return rows


def split_counts(prepared: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return (split, rows, tokens, trained tokens) of each split."""
    columns = [prepared.get(key, {}) for key in ("counts", "tokens", "trained_tokens")]
    return [(name, *(wording.count(column.get(name)) for column in columns)) for name in SPLITS if name in columns[0]]


def blocks_sentence(prepared: dict[str, Any]) -> str:
    """Return how many documents were split into how many blocks, as a sentence; empty if none was split."""
    counts = prepared.get("blocks") or {}
    if not counts.get("blocks"):
        return ""
    documents, blocks = wording.count(counts["documents"]), wording.count(counts["blocks"])
    return f"Long documents were split into blocks, each of which is a row: {documents} documents into {blocks} blocks."


def unused_rows(view: RunView) -> list[tuple[str, str, str, str]]:
    """Return (status, reason, number of rows, the first row numbers) of rows that were not used, or were cut."""
    rows = []
    for status in UNUSED:
        reasons = view.prepared.get(status) or {}
        for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            first = view.unused_rows.get((status, reason), [])
            examples = ", ".join(f"{row}" for row in first) + (", \u2026" if number > len(first) > 0 else "")
            rows.append((status, reason, wording.count(number), examples))
    return rows


def source_counts(prepared: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (source, rows of each split) if there are several sources."""
    sources = prepared.get("sources") or {}
    if len(sources) < 2:
        return []
    return [(name, [wording.count(rows.get(split, 0)) for split in SPLITS]) for name, rows in sources.items()]


def duplicates(prepared: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (which rows, exact duplicates, near-duplicates, example pairs) of rows that duplicate a training row."""
    copies, rows = prepared.get("copies") or {}, []
    for key, name in _DUPLICATES.items():
        if found := copies.get(key):
            pairs = [f"{pair['row']} like {pair['of']} ({pair['similarity']:.2f})" for pair in found["examples"]]
            rows.append((name, wording.count(found["exact"]), wording.count(found["near"]), "; ".join(pairs)))
    return rows


def performance(view: RunView) -> list[tuple[str, str]]:
    """Return the speed, memory and precision of training."""
    trained = view.training.facts
    trainable, total = trained.get("trainable_parameters"), trained.get("all_parameters")
    speed, tokens = (wording.count(trained.get(key)) for key in ("tokens_per_second", "tokens"))
    share = f"{wording.count(trainable)} of {wording.count(total)} ({wording.percent(trainable, total)})"
    peak, expected = trained.get("peak_memory_gib"), trained.get("expected_memory_gib")
    estimate = "" if expected is None else f" (estimated: {expected:.2f})"
    frozen = f", frozen weights in {trained['quantization']}" if trained.get("quantization") else ""
    plain = (trained.get("plain_path") or {}).items()
    rows = [
        ("Training throughput", f"{speed} tokens/s"),
        ("Training tokens", tokens),
        ("Peak memory of training", NONE if peak is None else f"{peak:.2f} GiB{estimate}"),
        ("Precision", f"{trained.get('precision') or NONE}{frozen}"),
        ("Fast paths not used", "; ".join(f"{name}: {reason}" for name, reason in plain) or NONE),
        ("Trained parameters", share),
        *utilization(view.training),
    ]
    return [(name, text) for name, text in rows if not text.startswith(NONE)]


def _clip(text: str) -> str:
    text = visible(text)
    cut = len(text) - MAX_TEXT_CHARACTERS
    return text if cut <= 0 else f"{text[:MAX_TEXT_CHARACTERS]} \u2026 ({cut:,} more characters)"


def _looks_like_code(text: str) -> bool:
    """Return whether answers look like code, which a fixed-width typeface suits."""
    return sum(character in "=<>{}()[];_*|" for character in text) > 0.025 * len(text)


def _score(number: float | None, binary: bool) -> str:
    if number is None:
        return NONE
    if binary:
        return "\u2713" if number else "\u2717"
    return f"{number:.2f}" if abs(number) < 100 else f"{number:,.0f}"


def answer_note(side: ModelAnswer) -> str:
    """Return the problem of an answer, if it has one: it failed, is empty or was cut off."""
    if side.error:
        return visible(f"failed: {side.error}")[:300]
    if not side.text.strip():
        return "empty answer"
    return "cut off at the token limit" if side.stopped is False else ""
