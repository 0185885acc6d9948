"""The wording of a sweep's result, shared by the page and the terminal."""

from tunesmith.report import wording
from tunesmith.report.unit import NONE, Unit
from tunesmith.sweep.collect import SweepResult, TrialResult

MEASURES = {
    "model_parameters": "model parameters",
    "trained_parameters": "trained parameters",
    "train_rows": "training rows",
    "tokens": "tokens trained on",
    "seconds": "training time",
    "memory_gib": "peak memory",
    "tokens_per_second": "training speed",
}
UNITS = {"seconds": "seconds", "memory_gib": "GiB", "tokens_per_second": "tokens/s"}


def measure_cell(measure: str, number: float | None) -> str:
    """Return a measure with its unit: 4.9 M, 12 min 3 s, 1.52 GiB."""
    if number is None:
        return NONE
    if measure == "seconds":
        return wording.duration(number)
    if measure == "memory_gib":
        return f"{number:.2f} GiB"
    return f"{number:,.0f} tokens/s" if measure == "tokens_per_second" else wording.short_count(number)


def varying_measures(result: SweepResult) -> list[str]:
    """Return the measures in which trials differ."""
    known = [trial.measures for trial in result.trials]
    return [name for name in MEASURES if len({measures[name] for measures in known if name in measures}) > 1]


def unit_of(result: SweepResult) -> Unit:
    """Return the unit of the metric that the threshold is on."""
    scores = [(trial.base, trial.score.value) for trial in result.trials if trial.base is not None and trial.score]
    return Unit.of(result.threshold.metric, *(number for pair in scores for number in pair))


def score_cell(result: SweepResult, trial: TrialResult) -> tuple[str, str]:
    """Return the tuned score and its interval."""
    unit, score = unit_of(result), trial.score
    return (unit.value(score.value), f"{unit.value(score.low)} to {unit.value(score.high)}") if score else (NONE, "")


def gain_cell(result: SweepResult, trial: TrialResult) -> tuple[str, str]:
    """Return the gain and its interval."""
    unit, gain = unit_of(result), trial.gain
    return (unit.change(gain.value), unit.interval(gain.low, gain.high)) if gain else (NONE, "")


def outcome_cell(trial: TrialResult) -> str:
    """Return the outcome of a trial, or its state if it has none."""
    return trial.outcome or trial.state


def threshold_text(result: SweepResult) -> str:
    """Word the threshold: `execution accuracy above 50.0 %`."""
    threshold, unit = result.threshold, unit_of(result)
    name = wording.metric_label(threshold.metric)
    if threshold.quantity == "gain":
        return f"a gain in {name} above {unit.points(threshold.value).lstrip('+')}"
    return f"{name} {'above' if result.higher_is_better else 'below'} {unit.value(threshold.value)}"


def headline(result: SweepResult) -> str:
    """Name the smallest trial that clears the threshold, if any does."""
    pending = sum(trial.state == "to do" for trial in result.trials)
    so_far = f" so far ({pending} of {len(result.trials)} trials to do)" if pending else ""
    if result.smallest is None:
        return f"No trial was shown to clear the threshold{so_far}"
    return f"The smallest trial that clears the threshold{so_far} is {result.smallest.label}"


def evidence(result: SweepResult) -> str:
    """Give the numbers behind the choice."""
    chosen = result.smallest
    if chosen is None:
        return f"The threshold is {threshold_text(result)}."
    score, around = score_cell(result, chosen)
    gain, gain_around = gain_cell(result, chosen)
    used = dict.fromkeys(axis.measure for axis in result.axes)
    small = ", ".join(f"{measure_cell(name, chosen.measures.get(name))} {MEASURES[name]}" for name in used)
    on_score = result.threshold.quantity == "score"
    reached = f"{score} ({around})" if on_score else f"{score}, {gain} over its base ({gain_around})"
    return (
        f"It reaches {wording.metric_label(result.threshold.metric)} {reached} on {wording.count(result.rows)} rows, "
        f"and the threshold is {threshold_text(result)}. It has {small}."
    )


def correction_text(result: SweepResult) -> str:
    """Explain the correction for comparing several trials."""
    trials = len(result.trials)
    return (
        f"Corrected for {trials} trials: each interval is at {100 * result.each_confidence:.4g} %, so that all of them "
        f"hold together at {100 * result.confidence:g} % (Bonferroni; Dunn 1961), and choosing the best of several "
        "is accounted for. Not corrected for: guards, other thresholds and other sweeps on the same test rows."
    )


def order_text(result: SweepResult) -> str:
    """Explain how `smallest` orders the trials."""
    measures = list(dict.fromkeys(MEASURES[axis.measure] for axis in result.axes))
    order = ", then ".join(measures)
    return f"Smallest by {order}; equal trials by score. A trial that is not named may still be good enough."


def as_text(result: SweepResult) -> str:
    """Return the result for a terminal."""
    used = varying_measures(result)
    rows = [["#", "trial", "", "score", "interval", "gain", "interval", *(MEASURES[measure] for measure in used)]]
    for trial in result.trials:
        row = [f"{trial.number}", trial.label, outcome_cell(trial)]
        row += [*score_cell(result, trial), *gain_cell(result, trial)]
        rows.append([*row, *(measure_cell(measure, trial.measures.get(measure)) for measure in used)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"{headline(result)}.", evidence(result), "", *table, ""]
    lines += [f"#{trial.number} failed: {trial.failure['reason']}" for trial in result.trials if trial.failure]
    lines += [correction_text(result), order_text(result), *result.notes, "", f"page:    {result.page}"]
    if command := result.promote_command:
        lines.append(f"promote: {command}")
    return wording.visible("\n".join(lines))
