"""Score or gain of every rung, with its interval, against one of its measures, as inline SVG."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from tunesmith.ladder import words
from tunesmith.ladder.collect import Estimate, Outcome, Result
from tunesmith.report import wording
from tunesmith.report.drawing import Point, dot, line, path, scale, svg, text, tick_label, ticks

_LOGARITHMIC_FROM = 8.0  # largest over smallest; below it a plain axis shows the distances better
_MARK_WIDTH = 14.0
_KINDS = {"clears": "clears", "falls short": "short", "cannot tell": "open", "breaks a guard": "short"}


def drawable(result: Result, measure: str) -> bool:
    """Say whether a drawing against this measure would show anything: two rungs at least that differ in it."""
    return len({outcome.measures[measure] for outcome, _ in _points(result, measure)}) > 1


def against(result: Result, measure: str, width: float, height: float = 330.0) -> Markup:
    """Draw what the bar is held against (score or gain) of each rung against a measure, its interval, and the bar."""
    points = _points(result, measure)
    if not points:
        return Markup("")
    factor = 100.0 if _is_share(result) else 1.0
    ends = [factor * end for _, one in points for end in (one.low, one.high) if math.isfinite(end)]
    low, high = min([*ends, factor * result.bar.value]), max([*ends, factor * result.bar.value])
    room = 0.06 * ((high - low) or 1.0)
    left, right, top, bottom = 46.0, width - 30, 26.0, height - 50
    y = scale(low - room, high + room, bottom, top)
    levels = ticks(low - room, high + room, 5)
    x, marks = _across([outcome.measures[measure] for outcome, _ in points], left + 24, right - 24, width)
    parts = [line(left, y(level), right, y(level), "grid") for level in levels]
    parts += [text(left - 6, y(level) + 4, tick_label(level, levels), "tick", "end") for level in levels]
    parts += [line(x(mark), bottom, x(mark), bottom + 5, "axis") for mark in marks]
    parts += [text(x(mark), bottom + 19, _short(mark), "tick") for mark in marks]
    parts += [
        line(left, bottom, right, bottom, "axis"),
        line(left, y(factor * result.bar.value), right, y(factor * result.bar.value), "wanted"),
        text(right + 5, y(factor * result.bar.value) + 4, "bar", "wanted-label", "start"),
        text(left, 13, _what(result), "axis-name", "start"),
        text(right, height - 8, _named(measure), "axis-name", "end"),
    ]
    beside = _side_by_side([x(one.measures[measure]) for one, _ in points])
    placed = {one.number: (at, y(factor * found.value)) for at, (one, found) in zip(beside, points, strict=True)}
    parts += [path(joined, "joined") for joined in _joined(result, measure, placed)]
    for outcome, found in points:
        reach = (y(max(factor * found.low, low)), y(min(factor * found.high, high)))
        parts += _mark(result, outcome, placed[outcome.number], reach)
    title = f"{_what(result)} against {words.MEASURES[measure]}"
    return svg(width, height, title, *parts)


def _points(result: Result, measure: str) -> list[tuple[Outcome, Estimate]]:
    found = [(outcome, outcome.judged(result.bar)) for outcome in result.outcomes if measure in outcome.measures]
    return [(outcome, one) for outcome, one in found if one is not None and math.isfinite(one.value)]


def _side_by_side(places: Sequence[float]) -> list[float]:
    """Move marks that would hide each other apart: those nearer than a mark's width to their left neighbour."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    groups: list[list[int]] = []
    for at in order:
        if groups and places[at] - places[groups[-1][-1]] < _MARK_WIDTH / 2:
            groups[-1].append(at)
        else:
            groups.append([at])
    moved = list(places)
    for group in groups:
        middle = sum(places[at] for at in group) / len(group)
        for turn, at in enumerate(group if len(group) > 1 else ()):
            moved[at] = middle + (turn - (len(group) - 1) / 2) * _MARK_WIDTH
    return moved


def _mark(result: Result, outcome: Outcome, at: Point, reach: Point) -> list[str]:
    """Draw one rung: whisker, dot (hollow where the bar is not cleared), its number, a ring around the smallest."""
    kind = _KINDS[outcome.standing or "cannot tell"]
    cell = words.score_cell if result.bar.on == "score" else words.gain_cell
    told = f"{outcome.number}. {outcome.label}: {', '.join(cell(result, outcome))}"
    chosen = result.smallest is not None and outcome.number == result.smallest.number
    parts = [
        line(at[0], reach[0], at[0], reach[1], f"whisker {kind}"),
        *(line(at[0] - 5, end, at[0] + 5, end, f"cap {kind}") for end in reach),
        dot(*at, 6, f"gain-dot {kind}", f"{told} ({words.standing(outcome)})"),
        text(at[0] + (14 if chosen else 9), at[1] + 5, f"{outcome.number}", f"end-label {kind}", "start"),
    ]
    return [*parts, dot(*at, 11, "smallest")] if chosen else parts


def _joined(result: Result, measure: str, placed: dict[int, Point]) -> list[list[Point]]:
    """Return the lines along the axis that this measure belongs to: rungs that differ in no other axis."""
    axis = next((place for place, axis in enumerate(result.axes) if axis.measure == measure), None)
    if axis is None:
        return []
    lines: dict[tuple[str, ...], list[Point]] = {}
    for outcome in result.outcomes:
        if outcome.number in placed:
            others = (*outcome.changes[:axis], *outcome.changes[axis + 1 :])
            lines.setdefault(others, []).append(placed[outcome.number])
    return [sorted(points) for points in lines.values()]


def _across(
    numbers: Sequence[float], start: float, end: float, width: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return the map from a measure to positions, logarithmic where it spans much, and its ticks."""
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


def _is_share(result: Result) -> bool:
    return all(gain.is_share for outcome in result.outcomes if (gain := words.gain_of(result, outcome)))


def _what(result: Result) -> str:
    name = wording.label(result.bar.metric)
    if result.bar.on == "gain":
        return f"gain in {name}{', points' if _is_share(result) else ''}"
    return f"{name}{', %' if _is_share(result) else ''}"


def _named(measure: str) -> str:
    unit = words.UNITS.get(measure)
    return f"{words.MEASURES[measure]}, {unit}" if unit else words.MEASURES[measure]


def _short(number: float) -> str:
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size * 10 or (number >= size and unit != " k"):
            return f"{number / size:,.4g}{unit}"
    return f"{number:,.4g}"
