"""Draw the score or gain of each trial, with its interval, against one of its measures, as inline SVG."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from tunesmith.report import wording
from tunesmith.report.drawing import Point, dot, grid, line, path, scale, svg, text, ticks
from tunesmith.sweep import text as sweep_text
from tunesmith.sweep.collect import Estimate, SweepResult, TrialResult

_LOGARITHMIC_FROM = 8.0  # the ratio of largest to smallest value; below it, a linear axis is easier to read
_MARK_WIDTH = 14.0
_KINDS = {"clears": "clears", "falls short": "short", "cannot tell": "open", "breaks a guard": "short"}


def is_drawable(result: SweepResult, measure: str) -> bool:
    """Return whether at least two trials differ in this measure."""
    return len({trial.measures[measure] for trial, _ in _points(result, measure)}) > 1


def draw_scores(result: SweepResult, measure: str, width: float, height: float = 330.0) -> Markup:
    """Draw the score or gain of each trial, its interval and the threshold, against a measure."""
    points = _points(result, measure)
    if not points:
        return Markup("")
    factor = sweep_text.unit_of(result).factor
    ends = [factor * end for _, estimate in points for end in (estimate.low, estimate.high) if math.isfinite(end)]
    low, high = min([*ends, factor * result.threshold.value]), max([*ends, factor * result.threshold.value])
    room = 0.06 * ((high - low) or 1.0)
    left, right, top, bottom = 46.0, width - 68, 26.0, height - 50
    y = scale(low - room, high + room, bottom, top)
    levels = ticks(low - room, high + room, 5)
    x, marks = _horizontal_scale([trial.measures[measure] for trial, _ in points], left + 24, right - 24, width)
    parts = grid(levels, y, left, right)
    parts += [line(x(mark), bottom, x(mark), bottom + 5, "axis") for mark in marks]
    parts += [text(x(mark), bottom + 19, _short_number(mark), "tick") for mark in marks]
    parts += [
        line(left, bottom, right, bottom, "axis"),
        line(left, y(factor * result.threshold.value), right, y(factor * result.threshold.value), "wanted"),
        text(right + 5, y(factor * result.threshold.value) + 4, "threshold", "wanted-label", "start"),
        text(left, 13, _quantity_label(result), "axis-name", "start"),
        text(right, height - 8, _measure_label(measure), "axis-name", "end"),
    ]
    columns = _spread([x(trial.measures[measure]) for trial, _ in points])
    placed = {
        trial.number: (column, y(factor * estimate.value))
        for column, (trial, estimate) in zip(columns, points, strict=True)
    }
    parts += [path(points_of_line, "joined") for points_of_line in _lines(result, measure, placed)]
    for trial, estimate in points:
        ends_of_mark = (y(max(factor * estimate.low, low)), y(min(factor * estimate.high, high)))
        parts += _mark(result, trial, placed[trial.number], ends_of_mark)
    title = f"{_quantity_label(result)} against {sweep_text.MEASURES[measure]}"
    return svg(width, height, title, *parts)


def _points(result: SweepResult, measure: str) -> list[tuple[TrialResult, Estimate]]:
    """Return the trials that have the measure and a finite score or gain, with that estimate."""
    points = [(trial, trial.estimate(result.threshold)) for trial in result.trials if measure in trial.measures]
    return [(trial, estimate) for trial, estimate in points if estimate is not None and math.isfinite(estimate.value)]


def _spread(xs: Sequence[float]) -> list[float]:
    """Move marks apart that would overlap: those nearer than half a mark's width to their left neighbour."""
    order = sorted(range(len(xs)), key=lambda index: xs[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and xs[index] - xs[groups[-1][-1]] < _MARK_WIDTH / 2:
            groups[-1].append(index)
        else:
            groups.append([index])
    moved = list(xs)
    for group in groups:
        middle = sum(xs[index] for index in group) / len(group)
        for position, index in enumerate(group if len(group) > 1 else ()):
            moved[index] = middle + (position - (len(group) - 1) / 2) * _MARK_WIDTH
    return moved


def _mark(result: SweepResult, trial: TrialResult, center: Point, ends: Point) -> list[str]:
    """Draw one trial: whisker, dot (hollow below the threshold), number, and a ring around the smallest."""
    kind = _KINDS[trial.outcome or "cannot tell"]
    cell = sweep_text.score_cell if result.threshold.quantity == "score" else sweep_text.gain_cell
    tooltip = f"{trial.number}. {trial.label}: {', '.join(cell(result, trial))}"
    is_smallest = result.smallest is not None and trial.number == result.smallest.number
    parts = [
        line(center[0], ends[0], center[0], ends[1], f"whisker {kind}"),
        *(line(center[0] - 5, end, center[0] + 5, end, f"cap {kind}") for end in ends),
        dot(*center, 6, f"gain-dot {kind}", f"{tooltip} ({sweep_text.outcome_cell(trial)})"),
        text(center[0] + (14 if is_smallest else 9), center[1] + 5, f"{trial.number}", f"end-label {kind}", "start"),
    ]
    return [*parts, dot(*center, 11, "smallest")] if is_smallest else parts


def _lines(result: SweepResult, measure: str, placed: dict[int, Point]) -> list[list[Point]]:
    """Return one line for each set of trials that differ only in the axis of this measure."""
    axis = next((index for index, axis in enumerate(result.axes) if axis.measure == measure), None)
    if axis is None:
        return []
    lines: dict[tuple[str, ...], list[Point]] = {}
    for trial in result.trials:
        if trial.number in placed:
            others = (*trial.changes[:axis], *trial.changes[axis + 1 :])
            lines.setdefault(others, []).append(placed[trial.number])
    return [sorted(points) for points in lines.values()]


def _horizontal_scale(
    numbers: Sequence[float], start: float, end: float, width: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return the scale of the horizontal axis, logarithmic if the range is wide, and its ticks."""
    low, high = min(numbers), max(numbers)
    if low <= 0 or high < _LOGARITHMIC_FROM * low:
        room = 0.0 if high > low else abs(high) or 1.0
        marks = ticks(low - room, high + room, 4 if width < 500 else 8)
        return scale(low - room, high + room, start, end), marks
    log = scale(math.log(low), math.log(high), start, end)
    tens = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1, 2, 5) if high < 200 * low and width > 500 else (1, 3) if high < 200 * low else (1,)
    marks = [factor * ten for ten in tens for factor in factors if low * 0.98 <= factor * ten <= high * 1.02]
    return lambda number: log(math.log(number)), marks or [low, high]


def _quantity_label(result: SweepResult) -> str:
    """Return the label of the vertical axis, with its unit."""
    name = wording.metric_label(result.threshold.metric)
    if result.threshold.quantity == "gain":
        return f"gain in {name}{', points' if sweep_text.unit_of(result).is_share else ''}"
    return f"{name}{', %' if sweep_text.unit_of(result).is_share else ''}"


def _measure_label(measure: str) -> str:
    """Return the label of the horizontal axis, with its unit."""
    unit = sweep_text.UNITS.get(measure)
    return f"{sweep_text.MEASURES[measure]}, {unit}" if unit else sweep_text.MEASURES[measure]


def _short_number(number: float) -> str:
    """Return a number as a tick label: 1.5 M, 20 k, 300."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size * 10 or (number >= size and unit != " k"):
            return f"{number / size:,.4g}{unit}"
    return f"{number:,.4g}"
