"""The parts of the report that are more than a field of the view: facts, health, answers, token rows, data, time."""

from collections.abc import Iterable
from typing import Any

from tunesmith.core.rundir import SPLITS
from tunesmith.core.verdict import Verdict
from tunesmith.report import wording
from tunesmith.report.answers import Segment, marks
from tunesmith.report.collect import LOST
from tunesmith.report.machine_chart import use_in_words
from tunesmith.report.unit import NONE
from tunesmith.report.view import Answer, Answers, Side, View
from tunesmith.report.wording import drawn, visible

ROWS_EMBEDDED = 2_000
ROWS_WITHOUT_SCRIPT = 20
TEXT_EMBEDDED = 4_000
CHARACTERS_EMBEDDED = 6_000_000
SCORES_SHOWN = 6
SAMPLES_SHOWN = 12
TOKENS_SHOWN = 1_200

_HEALTH = {
    "failed": "Failed with an error",
    "empty": "Empty answers",
    "cut_off": "Cut off at the length limit",
    "unstopped": "Never stopped by themselves",
}
_COPIES = {"duplicates": "Training rows, of one before", "valid": "Validation rows", "test": "Test rows",
           "left_out": "Training rows left out, of held-out ones"}  # fmt: skip
_MARK_CODES = {"same": 0, "extra": 1, "missing": 2}
_FILTERS = {
    "fixed": ("Fixed", "Better"),
    "broken": ("Broken", "Worse"),
    "right": ("Both right", ""),
    "wrong": ("Both wrong", ""),
    "even": ("", "Equal score"),
}


def facts(view: View) -> list[tuple[str, str]]:
    """Return what a reader asks next after the verdict: which model, how much training, how long, promoted or not."""
    trained = view.training.facts if view.training else {}
    model = view.settings.get("model") or {}
    found: list[tuple[str, str]] = []
    if isinstance(model, dict) and model.get("base"):
        found.append(("Base model", str(model["base"])))
    if trained.get("steps"):
        found.append(("Training", f"{wording.count(trained['steps'])} steps"))
    if trained.get("trainable_parameters"):
        part, whole = trained["trainable_parameters"], trained.get("all_parameters")
        words = wording.short_count(part)
        found.append(("Trained weights", f"{words} of {wording.short_count(whole)}" if whole else words))
    if view.answers and any(row.outcome in ("fixed", "broken") for row in view.answers.rows):
        outcomes = [row.outcome for row in view.answers.rows]
        found.append(("Rows better / worse", f"{outcomes.count('fixed'):,} / {outcomes.count('broken'):,}"))
    if sum(stage.seconds or 0 for stage in view.stages):
        found.append(("Time", wording.duration(sum(stage.seconds or 0 for stage in view.stages))))
    if view.environment.get("device"):
        found.append(("Machine", str(view.environment["device"])))
    if view.promotion:
        name, version = view.promotion.get("model", ""), view.promotion.get("version", "")
        found.append(("Promoted", f"{name} {version} \u2192 {view.promotion.get('alias', '')}"))
    return found


def health(verdict: Verdict) -> list[tuple[str, list[tuple[str, str]], bool]]:
    """Return (what went wrong, [(count, share) of base and tuned], whether tuned is the worse one)."""
    rows = []
    for key, name in _HEALTH.items():
        cells, rates = [], []
        for subject in ("base", "tuned"):
            counts = verdict.health.get(subject, {})
            total, number = counts.get("rows"), counts.get(key)
            if key == "unstopped" and total is not None and counts.get("stopped") is not None:
                number = total - counts["stopped"]
            cells.append((wording.count(number), wording.share(number, total)))
            rates.append(number / total if number is not None and total else 0.0)
        rows.append((name, cells, rates[1] > rates[0]))
    return rows


def filters(answers: Answers) -> list[tuple[str, str, int]]:
    """Return (key, name, rows) of the row filters that make sense for these answers."""
    graded = any(row.outcome == "even" for row in answers.rows) or not any(
        row.outcome in ("right", "wrong") for row in answers.rows
    )
    found = [("all", "All", len(answers.rows))]
    for key, names in _FILTERS.items():
        rows = sum(row.outcome == key for row in answers.rows)
        if names[graded] and any(row.outcome != "unknown" for row in answers.rows):
            found.append((key, names[graded], rows))
    found.append(("changed", "Changed", sum(row.changed for row in answers.rows)))
    return found


def embedded_rows(answers: Answers) -> list[Answer]:
    """Return the rows that go into the file: all that got better or worse first, then the others, up to the limits."""
    by_weight = sorted(range(len(answers.rows)), key=lambda index: answers.rows[index].gain in (None, 0.0))
    chosen, room = [], CHARACTERS_EMBEDDED
    for index in by_weight[:ROWS_EMBEDDED]:
        row = answers.rows[index]
        texts = [row.prompt, row.reference or "", *(side.text for side in (row.base, row.tuned) if side)]
        room -= sum(min(len(text), TEXT_EMBEDDED) for text in texts)
        if room < 0:
            break
        chosen.append(index)
    return [answers.rows[index] for index in sorted(chosen)]


def payload(answers: Answers) -> dict[str, Any]:
    """Return the embedded rows, each a list in the order of `fields`, texts made visible and differences marked."""
    rows = embedded_rows(answers)
    sides = [side for row in rows for side in (row.base, row.tuned) if side]
    names = sorted({name for side in sides for name in side.scores}, key=lambda name: (name != answers.metric, name))
    names = names[:SCORES_SHOWN]
    binary = {name for name in names if all(side.scores.get(name, 0.0) in (0.0, 1.0) for side in sides)}

    def side_of(side: Side | None, reference: str | None) -> list[Any] | None:
        if side is None:
            return None
        segments = marks(_clip(side.text), reference)
        return [_compact(segments), [_score(side.scores.get(name), name in binary) for name in names], _note(side)]

    entries = []
    for row in rows:
        reference = None if row.reference is None else _clip(row.reference)
        base, tuned = side_of(row.base, reference), side_of(row.tuned, reference)
        gain = None if row.gain is None else round(row.gain, 6)
        prompt = _clip(row.prompt.strip("\n"))
        entries.append([row.number, prompt, reference, row.outcome, int(row.changed), gain, base, tuned])
    return {
        "fields": ["number", "prompt", "reference", "outcome", "changed", "gain", "base", "tuned"],
        "scores": [wording.label(name) for name in names],
        "badges": {key: name for key, name, _ in filters(answers)},
        "has_reference": any(row.reference is not None for row in rows),
        "code_like": _looks_like_code("".join(row.reference or "" for row in rows[:100])),
        "rows": entries,
    }


def token_rows(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sample rows with at most `TOKENS_SHOWN` tokens each, line breaks and tabs drawn."""
    rows = []
    for sample in list(samples)[:SAMPLES_SHOWN]:
        tokens = sample.get("tokens", [])
        plain = {"id": "", "trained": False, "special": False}
        shown = [{**plain, **token, "text": drawn(str(token.get("text", "")))} for token in tokens[:TOKENS_SHOWN]]
        trained = sum(bool(token.get("trained")) for token in tokens)
        rows.append({**sample, "tokens": shown, "total": len(tokens), "trained": trained})
    return rows


def splits(prepared: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (split, rows, tokens, trained tokens) of each split."""
    counts = prepared.get("counts", {})
    tokens, trained = prepared.get("tokens", {}), prepared.get("trained_tokens", {})
    return [
        (name, wording.count(counts[name]), wording.count(tokens.get(name)), wording.count(trained.get(name)))
        for name in SPLITS
        if name in counts
    ]


def blocks(prepared: dict[str, Any]) -> str:
    """Return how many documents are learned in how many blocks, as a sentence; nothing where all are whole."""
    found = prepared.get("blocks") or {}
    if not found.get("blocks"):
        return ""
    documents, parts = wording.count(found["documents"]), wording.count(found["blocks"])
    return f"Long documents are learned in blocks, and each is a row: {documents} in {parts}."


def lost(view: View) -> list[tuple[str, str, str, str]]:
    """Return (status, reason, rows, the first row numbers) of what did not reach the model whole."""
    rows = []
    for status in LOST:
        reasons = view.prepared.get(status) or {}
        for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            first = view.lost_rows.get((status, reason), [])
            examples = ", ".join(f"{row}" for row in first) + (", \u2026" if number > len(first) > 0 else "")
            rows.append((status, reason, wording.count(number), examples))
    return rows


def mixture(prepared: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (source, rows of each split) where there are several sources."""
    sources = prepared.get("sources") or {}
    return [
        (name, [wording.count(counts.get(split, 0)) for split in SPLITS])
        for name, counts in sources.items()
        if len(sources) > 1
    ]


def copies(prepared: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (which rows, exact copies, near copies, pairs) of rows that say what a training row says."""
    found = prepared.get("copies") or {}
    return [
        (
            name,
            wording.count(found[key]["exact"]),
            wording.count(found[key]["near"]),
            "; ".join(f"{one['row']} like {one['of']} ({one['similarity']:.2f})" for one in found[key]["examples"]),
        )
        for key, name in _COPIES.items()
        if key in found
    ]


def speeds(view: View) -> list[tuple[str, str]]:
    """Return how fast training was and what it needed."""
    trained = view.training.facts if view.training else {}
    parts, whole = trained.get("trainable_parameters"), trained.get("all_parameters")
    peak, kept = trained.get("peak_memory_gib"), trained.get("quantization")
    found = [
        ("Training throughput", f"{wording.count(trained.get('tokens_per_second'))} tokens/s"),
        ("Tokens read in training", wording.count(trained.get("tokens"))),
        ("Peak memory in training", _memory(peak, trained.get("expected_memory_gib"))),
        ("Precision", str(trained.get("precision") or NONE) + (f", frozen weights in {kept}" if kept else "")),
        ("Not computed the fast way", _reasons(trained.get("plain_path"))),
        ("Trained weights", f"{wording.count(parts)} of {wording.count(whole)} ({wording.share(parts, whole)})"),
    ]
    found += use_in_words(view.training) if view.training else []
    return [(name, words) for name, words in found if not words.startswith(NONE)]


def _reasons(plain: Any) -> str:
    """Return what was not computed the fast way, and why not."""
    return "; ".join(f"{name}: {reason}" for name, reason in plain.items()) if plain else NONE


def _memory(peak: Any, expected: Any) -> str:
    """Return what was needed, beside what was expected before the first step."""
    if not isinstance(peak, (int, float)):
        return NONE
    beforehand = f" ({expected:.2f} expected beforehand)" if isinstance(expected, (int, float)) else ""
    return f"{peak:.2f} GiB{beforehand}"


def _clip(text: str) -> str:
    text = visible(text)
    left = len(text) - TEXT_EMBEDDED
    return text if left <= 0 else f"{text[:TEXT_EMBEDDED]} \u2026 ({left:,} more characters)"


def _looks_like_code(text: str) -> bool:
    """Say whether a fixed-width typeface suits the answers."""
    return sum(character in "=<>{}()[];_*|" for character in text) > 0.025 * len(text)


def _compact(segments: list[Segment]) -> list[Any]:
    return [text if kind == "same" else [_MARK_CODES[kind], text] for kind, text in segments]


def _score(number: float | None, binary: bool) -> str:
    if number is None:
        return NONE
    if binary:
        return "\u2713" if number else "\u2717"
    return f"{number:.2f}" if abs(number) < 100 else f"{number:,.0f}"


def _note(side: Side) -> str:
    if side.error:
        return visible(f"failed: {side.error}")[:300]
    if not side.text.strip():
        return "empty answer"
    return "cut off at the length limit" if side.stopped is False else ""
