"""Numbers, names and verdicts in words. The report and the terminal say the same sentence, because it is made here."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.core.progress import format_duration
from tunesmith.core.stages import EVALUATE, stage_named
from tunesmith.report.view import Gain, Guard, Training, Verdict, View, is_share
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.row_scores import failed_text
from tunesmith.scoring.verdict import is_non_inferiority, rows_needed_text

MINUS = "\u2212"
NONE = "\u2013"
HEADLINES = {
    "better": "The tuned model is better",
    "not_better": "The tuned model is not better",
    "cannot_tell": "It cannot be told whether the tuned model is better",
}
_BIDI_AND_HIDDEN = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200B, 0xFEFF]
_VISIBLE: dict[int, int | str] = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_VISIBLE |= {code: f"\u27e8U+{code:04X}\u27e9" for code in [*range(0x80, 0xA0), *_BIDI_AND_HIDDEN]}
_VISIBLE[0x7F] = 0x2421
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """Return text in which control characters, text-direction overrides and broken characters are shown, not obeyed."""
    return _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n")).translate(_VISIBLE)


def drawn(text: str) -> str:
    """Return the text of one token with nothing in it invisible; no text is one more token of the character before."""
    return visible(text).replace("\t", "\u2192\t").replace("\n", "\u21b5\n") or "\u2025"


def label(metric: str) -> str:
    """Return a metric's name as people write it; of one of the user's own, the name of its function."""
    name = re.split("[.:]", metric)[-1]
    known = find_metric(name)
    return known.label if known else visible(name).replace("_", " ")


def measured(metric: str, number: float, *, percent: bool) -> str:
    """Return what a validation found: 43.5 %, or 1.234 for the loss."""
    known = find_metric(metric)
    return f"{100 * number:.1f} %" if percent else f"{number:,.{known.decimals if known else 2}f}"


def chosen(training: Training | None) -> str:
    """Say which checkpoint counts and by what it was chosen; nothing where that is not on record."""
    facts = training.facts if training else {}
    step, by, best = facts.get("best_step"), facts.get("chosen_by"), facts.get("best_value")
    if training is None or step is None or by is None:
        return ""
    if best is None:
        return f"No validation rows: the last checkpoint, step {count(step)}, counts"
    curve = [value for _, value in training.scores.get(by, ())]
    told = [measured(by, best, percent=is_share(by, [*curve, best]))]
    point = next((point for point in training.valid if point[0] == step), None)
    if point is not None and by != "loss":
        told.append(f"loss {point[1]:.3f}")
    if point is not None and by != "token_accuracy" and point[2] is not None:
        told.append(f"{share(point[2], 1)} of tokens right")
    return (
        f"The checkpoint of step {count(step)} was the best on the validation rows by {label(by)} ({', '.join(told)})"
    )


def count(value: float | None) -> str:
    """Return a whole number with separators: 12,345."""
    return NONE if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """Return a large number shortened: 138.6 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value is not None and value >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.1f} {unit}"
    return count(value)


def block_in_words(block: Sequence[int] | None) -> str:
    """Return which block of a document a row is, to stand behind the row; nothing where it is a whole one."""
    return f", block {block[0]} of {block[1]}" if block else ""


def share(part: float | None, whole: float | None) -> str:
    """Return a part of a whole in percent, with the decimals that small parts need."""
    if part is None or not whole:
        return NONE
    percent = 100 * part / whole
    return f"{percent:.2f} %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def duration(seconds: float | None) -> str:
    """Return a time span such as 3h 20m; a dash if it is unknown."""
    return NONE if seconds is None else format_duration(seconds)


def value(gain: Gain, number: float | None) -> str:
    """Return one value of a metric: 88.0 % or 12.40."""
    if number is None or not math.isfinite(number):
        return NONE
    return f"{100 * number:.1f} %" if gain.is_share else f"{number:,.2f}"


def change(gain: Gain, number: float, decimals: int | None = None) -> str:
    """Return a signed difference in the metric's unit: +86.0 (points) or +4.30."""
    if not math.isfinite(number):
        return NONE
    scaled, usual = (100 * number, 1) if gain.is_share else (number, 2)
    text = f"{abs(scaled):,.{usual if decimals is None else decimals}f}"
    if not text.strip("0.,"):
        return text
    return ("+" if scaled > 0 else MINUS) + text


def interval(gain: Gain) -> str:
    """Return the interval of a gain: +79.3 to +91.3, finer where an end would be rounded to nothing."""
    usual = 1 if gain.is_share else 2
    vanishes = any(end and not change(gain, end).strip("0.,") for end in (gain.low, gain.high))
    decimals = usual + 1 if vanishes else usual
    return f"{change(gain, gain.low, decimals)} to {change(gain, gain.high, decimals)}"


def confidence(gain: Gain) -> str:
    """Return the confidence of an interval: 95 %."""
    return f"{100 * gain.confidence:g} %"


def with_unit(gain: Gain, number: float) -> str:
    """Return a signed difference with its unit: +5.0 points."""
    return f"{change(gain, number)} points" if gain.is_share else change(gain, number)


def verdict_sentence(verdict: Verdict) -> str:
    """Say in plain words what came out, with the interval it rests on."""
    gain = verdict.primary
    sentence = f"{_conclusion(verdict)}: {_movement(gain)} ({_evidence(gain)})"
    failed = [guard for guard in verdict.guards if not guard.passed]
    if verdict.verdict == "not_better" and gain.low > gain.min_gain and failed:
        sentence += f", but {guard_sentence(failed[0])}"
    elif gain.min_gain > 0:
        sentence += f"; a gain of more than {with_unit(gain, gain.min_gain).lstrip('+')} was asked for"
    sentence += "."
    if gain.failed and gain.rows is not None:
        text = failed_text(gain.failed, gain.failed + gain.rows)
        sentence += f" {text}."
    if verdict.verdict == "cannot_tell" and gain.rows_needed:
        sentence += f" {_settled_by(gain)}"
    return sentence


def _conclusion(verdict: Verdict) -> str:
    """Return the headline; a negative `min_gain` asks only for a model that is not worse by more than that."""
    gain, word = verdict.primary, verdict.verdict
    if word not in HEADLINES or not is_non_inferiority(word, gain.low, gain.min_gain):
        return HEADLINES.get(word, word)
    margin = f"than the base by more than {with_unit(gain, gain.min_gain).lstrip(MINUS)} (non-inferiority)"
    return {
        "better": f"The tuned model is not worse {margin}",
        "not_better": f"The tuned model is worse {margin}",
        "cannot_tell": f"It cannot be told whether the tuned model is worse {margin}",
    }[word]


def _settled_by(gain: Gain) -> str:
    """Say what would settle a verdict that cannot tell."""
    needed = {"groups": gain.groups, "rows": gain.rows, "groups_needed": gain.groups_needed}
    if None in needed.values():
        return f"About {count(gain.rows_needed)} rows would settle it."
    text = rows_needed_text({**needed, "confidence": gain.confidence})
    return f"{text[0].upper()}{text[1:]}."


def group_sentences(verdict: Verdict) -> list[str]:
    """Say how the rows are grouped, what the interval by row would be, and how the groups moved."""
    grouping, gain = verdict.grouping, verdict.primary
    if grouping is None or gain.by_row is None:
        return []
    alike = f"Rows with the same `{grouping.by}`" if grouping.by else "Rows that ask the same"
    low, high = gain.by_row
    by_row = interval(replace(gain, low=low, high=high))
    return [
        f"{alike} depend on one another, so the interval counts the {count(grouping.groups)} groups; counted by row it "
        f"would be {by_row}.",
        f"Of the {count(grouping.groups)} groups {count(grouping.improved)} rose, {count(grouping.worsened)} fell and "
        f"{count(grouping.groups - grouping.improved - grouping.worsened)} stayed.",
    ]


def guard_sentence(guard: Guard) -> str:
    """Say what a guard saw against what it allows."""
    allowed = with_unit(guard.change, guard.max_drop).lstrip("+")
    return (
        f"{label(guard.change.metric)} changed by {with_unit(guard.change, guard.change.gain)} "
        f"({interval(guard.change)}), where a drop of at most {allowed} is allowed"
    )


def headline(view: View) -> str:
    """Return the verdict sentence, or what this run lacks for one."""
    if view.verdict:
        return verdict_sentence(view.verdict)
    stage = next((stage for stage in view.stages if stage.state in ("missing", "unfinished")), None)
    activity = stage_named(stage.name).activity if stage else EVALUATE.activity
    if stage is None or stage.state == "missing":
        return f"There is no verdict yet: this run stopped before {activity}."
    steps = view.training.steps if view.training and stage.name == "train" else ()
    so_far = f" ({count(steps[-1][0])} steps so far)" if steps else ""
    return f"There is no verdict yet: {activity} has not finished{so_far}."


def _movement(gain: Gain) -> str:
    base, tuned = value(gain, gain.base), value(gain, gain.tuned)
    if base == tuned or gain.base is None or gain.tuned is None:
        return f"{label(gain.metric)} stayed at {base}"
    return f"{label(gain.metric)} {'rose' if gain.tuned > gain.base else 'fell'} from {base} to {tuned}"


def _evidence(gain: Gain) -> str:
    direction = "" if gain.higher_is_better else "; lower is better"
    size = with_unit(gain, gain.gain)
    if not gain.higher_is_better and gain.gain:
        size = f"{'better' if gain.gain > 0 else 'worse'} by {size.lstrip('+' + MINUS)}"
    rows = f"{count(gain.rows)} rows"
    if gain.groups is not None and gain.rows is not None and gain.groups < gain.rows:
        rows += f" in {count(gain.groups)} groups"
    return f"{size}, {confidence(gain)} interval {interval(gain)}, {rows}{direction}"
