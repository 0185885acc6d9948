"""A ladder's result in words. The page and the terminal say the same, because it is said here."""

from tunesmith.ladder.collect import Bar, Outcome, Result
from tunesmith.report import wording
from tunesmith.report.view import Gain
from tunesmith.scoring.metrics import higher_is_better

MEASURES = {
    "model_parameters": "model parameters",
    "trained_parameters": "trained weights",
    "train_rows": "training rows",
    "tokens": "tokens trained on",
    "seconds": "training time",
    "memory_gib": "peak memory",
    "tokens_per_second": "training speed",
}
UNITS = {"seconds": "seconds", "memory_gib": "GiB", "tokens_per_second": "tokens/s"}


def measured(measure: str, number: float | None) -> str:
    """Return a measure with its unit: 4.9 M, 12 min 3 s, 1.52 GiB."""
    if number is None:
        return wording.NONE
    if measure == "seconds":
        return wording.duration(number)
    if measure == "memory_gib":
        return f"{number:.2f} GiB"
    return f"{number:,.0f} tokens/s" if measure == "tokens_per_second" else wording.short_count(number)


def telling(result: Result) -> list[str]:
    """Return the measures in which rungs differ."""
    return [
        name for name in MEASURES if len({one.measures[name] for one in result.outcomes if name in one.measures}) > 1
    ]


def gain_of(result: Result, outcome: Outcome) -> Gain | None:
    """Return a rung's gain as reports word it."""
    if outcome.gain is None or outcome.score is None:
        return None
    return Gain(
        metric=result.bar.metric,
        base=outcome.base,
        tuned=outcome.score.value,
        gain=outcome.gain.value,
        low=outcome.gain.low,
        high=outcome.gain.high,
        confidence=result.each_confidence,
        rows=result.rows,
        higher_is_better=result.higher_is_better,
        rows_needed=None,
        min_gain=result.bar.value if result.bar.on == "gain" else 0.0,
    )


def score_cell(result: Result, outcome: Outcome) -> tuple[str, str]:
    """Return the tuned score and its interval."""
    gain, score = gain_of(result, outcome), outcome.score
    if gain is None or score is None:
        return wording.NONE, ""
    return wording.value(gain, score.value), f"{wording.value(gain, score.low)} to {wording.value(gain, score.high)}"


def gain_cell(result: Result, outcome: Outcome) -> tuple[str, str]:
    """Return the gain and its interval."""
    gain = gain_of(result, outcome)
    return (wording.change(gain, gain.gain), wording.interval(gain)) if gain else (wording.NONE, "")


def standing(outcome: Outcome) -> str:
    """Return in a word or two how a rung stands."""
    return outcome.standing or outcome.state


def bar_words(result: Result) -> str:
    """Say what had to be cleared: `execution accuracy above 50.0 %`."""
    bar = result.bar
    gain = next((gain for outcome in result.outcomes if (gain := gain_of(result, outcome))), _unknown(bar))
    name = wording.label(bar.metric)
    if bar.on == "gain":
        return f"a gain in {name} above {wording.with_unit(gain, bar.value).lstrip('+')}"
    return f"{name} {'above' if result.higher_is_better else 'below'} {wording.value(gain, bar.value)}"


def _unknown(bar: Bar) -> Gain:
    """Return a gain of which only the metric is known, to word a bar before any rung is done."""
    return Gain(bar.metric, None, None, 0.0, 0.0, 0.0, 0.95, None, higher_is_better(bar.metric) is not False, None, 0.0)


def headline(result: Result) -> str:
    """Say which rung is the smallest that clears the bar, or that none does."""
    left = sum(outcome.state == "to do" for outcome in result.outcomes)
    so_far = f" so far ({left} of {len(result.outcomes)} rungs to do)" if left else ""
    if result.smallest is None:
        return f"No rung was shown to clear the bar{so_far}"
    return f"The smallest rung that clears the bar{so_far} is {result.smallest.label}"


def evidence(result: Result) -> str:
    """Say what the choice rests on."""
    chosen = result.smallest
    if chosen is None:
        return f"The bar is {bar_words(result)}."
    score, around = score_cell(result, chosen)
    gain, gain_around = gain_cell(result, chosen)
    small = ", ".join(
        f"{measured(measure, chosen.measures.get(measure))} {MEASURES[measure]}"
        for measure in dict.fromkeys(axis.measure for axis in result.axes)
    )
    found = f"{score} ({around})" if result.bar.on == "score" else f"{score}, {gain} over its base ({gain_around})"
    return (
        f"It reaches {wording.label(result.bar.metric)} {found} on {wording.count(result.rows)} rows, "
        f"where the bar is {bar_words(result)}. It has {small}."
    )


def correction(result: Result) -> str:
    """Say what was done about looking at several rungs."""
    rungs = len(result.outcomes)
    return (
        f"Corrected for {rungs} rungs: each interval is at {100 * result.each_confidence:.4g} %, so that all of them "
        f"hold together at {100 * result.confidence:g} % (Bonferroni; Dunn 1961), and the choice among them is not a "
        "lucky one of many. Not corrected for: the guards, other bars and other ladders tried on the same test rows."
    )


def meaning(result: Result) -> str:
    """Say what `smallest` means here."""
    measures = list(dict.fromkeys(MEASURES[axis.measure] for axis in result.axes))
    order = ", then ".join(measures)
    return (
        f"Smallest by {order}; rungs equal in that by the better score. One that is not named may still be good enough."
    )


def as_text(result: Result) -> str:
    """Return the result for a terminal."""
    used = telling(result)
    rows = [["#", "rung", "", "score", "interval", "gain", "interval", *(MEASURES[measure] for measure in used)]]
    for outcome in result.outcomes:
        row = [f"{outcome.number}", outcome.label, standing(outcome)]
        row += [*score_cell(result, outcome), *gain_cell(result, outcome)]
        rows.append([*row, *(measured(measure, outcome.measures.get(measure)) for measure in used)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"{headline(result)}.", evidence(result), "", *table, ""]
    lines += [f"#{one.number} failed: {one.failure['reason']}" for one in result.outcomes if one.failure]
    lines += [correction(result), meaning(result), *result.notes, "", f"page:    {result.page}"]
    if command := result.promote_command:
        lines.append(f"promote: {command}")
    return wording.visible("\n".join(lines))
