"""Numbers, names and verdicts in words. The report and the terminal say the same sentence, because it is made here."""

import re
from collections.abc import Sequence

from tunesmith.core.progress import format_duration
from tunesmith.core.stages import EVALUATE, stage_named
from tunesmith.core.verdict import Comparison, Guard, Verdict
from tunesmith.report.unit import MINUS, NONE, Unit, unit_of
from tunesmith.report.view import Training, View
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.verdict import failed_text, is_non_inferiority, reasons_of, rows_needed_text

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


def chosen(training: Training | None) -> str:
    """Say which checkpoint counts and by what it was chosen; nothing where that is not on record."""
    facts = training.facts if training else {}
    step, by, best = facts.get("best_step"), facts.get("chosen_by"), facts.get("best_value")
    if training is None or step is None or by is None:
        return ""
    if best is None:
        return f"No validation rows: the last checkpoint, step {count(step)}, counts"
    curve = [value for _, value in training.scores.get(by, ())]
    told = [Unit.of(by, *curve, best).value(best)]
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


def confidence(comparison: Comparison) -> str:
    """Return the confidence of an interval: 95 %."""
    return f"{100 * comparison.confidence:g} %"


def verdict_sentence(verdict: Verdict) -> str:
    """Say in plain words what came out, with the interval it rests on."""
    primary = verdict.primary
    sentence = f"{_conclusion(primary)}: {_movement(primary)} ({_evidence(primary)})"
    if primary.min_gain > 0:
        sentence += f"; a gain of more than {unit_of(primary).points(primary.min_gain).lstrip('+')} was asked for"
    sentence += "."
    if primary.failed:
        sentence += f" {failed_text(primary)}."
    if primary.verdict == "cannot_tell" and primary.groups_needed:
        text = rows_needed_text(primary)
        sentence += f" {text[0].upper()}{text[1:]}."
    return sentence


def other_reasons(verdict: Verdict) -> list[str]:
    """Return the reasons that `verdict_sentence` does not give."""
    return [reason for reason in verdict.reasons if reason not in reasons_of(verdict.primary)]


def _conclusion(primary: Comparison) -> str:
    """Return the headline; a negative `min_gain` asks only for a model that is not worse by more than that."""
    if not is_non_inferiority(primary):
        return HEADLINES[primary.verdict]
    allowed = unit_of(primary).points(primary.min_gain).lstrip(MINUS)
    margin = f"than the base by more than {allowed} (non-inferiority)"
    return {
        "better": f"The tuned model is not worse {margin}",
        "not_better": f"The tuned model is worse {margin}",
        "cannot_tell": f"It cannot be told whether the tuned model is worse {margin}",
    }[primary.verdict]


def group_sentences(verdict: Verdict) -> list[str]:
    """Say how the rows are grouped, what the interval by row would be, and how the groups moved."""
    grouping, primary = verdict.grouping, verdict.primary
    if grouping is None or primary.by_row is None:
        return []
    alike = f"Rows with the same `{grouping.by}`" if grouping.by else "Rows that ask the same"
    by_row = unit_of(primary).interval(*primary.by_row)
    return [
        f"{alike} depend on one another, so the interval counts the {count(grouping.groups)} groups; counted by row it "
        f"would be {by_row}.",
        f"Of the {count(grouping.groups)} groups {count(grouping.improved)} rose, {count(grouping.worsened)} fell and "
        f"{count(grouping.groups - grouping.improved - grouping.worsened)} stayed.",
    ]


def guard_sentence(guard: Guard) -> str:
    """Say what a guard saw against what it allows."""
    change, unit = guard.comparison, unit_of(guard.comparison)
    return (
        f"{label(change.metric)} changed by {unit.points(change.gain)} ({unit.interval(change.low, change.high)}), "
        f"where a drop of at most {unit.points(guard.max_drop).lstrip('+')} is allowed"
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


def _movement(primary: Comparison) -> str:
    base, tuned = unit_of(primary).value(primary.base), unit_of(primary).value(primary.tuned)
    if base == tuned:
        return f"{label(primary.metric)} stayed at {base}"
    return f"{label(primary.metric)} {'rose' if primary.tuned > primary.base else 'fell'} from {base} to {tuned}"


def _evidence(primary: Comparison) -> str:
    unit = unit_of(primary)
    direction = "" if primary.higher_is_better else "; lower is better"
    size = unit.points(primary.gain)
    if not primary.higher_is_better and primary.gain:
        size = f"{'better' if primary.gain > 0 else 'worse'} by {size.lstrip('+' + MINUS)}"
    rows = f"{count(primary.rows)} rows"
    if primary.groups < primary.rows:
        rows += f" in {count(primary.groups)} groups"
    interval = unit.interval(primary.low, primary.high)
    return f"{size}, {confidence(primary)} interval {interval}, {rows}{direction}"
