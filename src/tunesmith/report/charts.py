"""The charts of the report as inline SVG. Colours come from CSS classes, so that they follow light, dark and print.

Every chart takes a width, because the text in an SVG shrinks with it: the page has a wide and a narrow version.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from markupsafe import Markup

from tunesmith.core.verdict import Comparison
from tunesmith.report import wording
from tunesmith.report.drawing import Point, box, dot, grid, line, path, scale, svg, text, tick_label, ticks
from tunesmith.report.unit import MINUS, unit_of
from tunesmith.report.view import Training

MAX_POINTS = 400


def gain_axis(gain: Comparison, width: float) -> Markup:
    """Draw the interval of the gain, with a line at no change and a line at `min_gain`."""
    unit = unit_of(gain)
    low, middle, high, min_gain = (unit.factor * number for number in (gain.low, gain.gain, gain.high, gain.min_gain))
    left, right = min(0.0, min_gain, low), max(0.0, min_gain, high)
    margin = (right - left or 1.0) * (0.14 if width > 500 else 0.2)
    x = scale(left - margin, right + margin, 1, width - 1)
    marks = ticks(left - margin, right + margin, 4 if width < 500 else 9)
    label = wording.metric_label(gain.metric)
    name = "points" if unit.is_share else label
    min_gain_label = f"min_gain: {unit.change(gain.min_gain)}" if gain.min_gain else "no change"
    anchor = "start" if x(min_gain) < 60 else "end" if x(min_gain) > width - 60 else "middle"
    height = 14 if abs(x(min_gain) - x(middle)) < 95 else 44  # the label of the gain moves up if the two would overlap
    low_text, _, high_text = unit.interval(gain.low, gain.high).partition(" to ")
    title = f"Gain in {label}: {unit.change(gain.gain)}, {unit.interval(gain.low, gain.high)} {name}"
    parts = [
        box(1, 40, x(min_gain) - 1, 52, "not-enough"),
        line(1, 92, width - 1, 92, "axis"),
        *(line(x(mark), 92, x(mark), 97, "axis") for mark in marks),
        *(text(x(mark), 111, _signed_label(mark, marks), "tick") for mark in marks),
        line(x(0), 40, x(0), 92, "zero"),
        line(x(min_gain), 34, x(min_gain), 92, "wanted") if min_gain else "",
        *_interval(x(low), x(high), 66, 9),
        dot(x(middle), 66, 8, "gain-dot"),
        text(x(min_gain), 28, min_gain_label, "wanted-label", anchor),
        text(min(max(x(middle), 40.0), width - 40), height, unit.change(gain.gain), "gain-label"),
        text(x(low) - 7, 71, low_text, "end-label", "end"),
        text(x(high) + 7, 71, high_text, "end-label", "start"),
        text(1, 130, "\u2190 worse", "axis-name", "start"),
        text(width / 2, 130, f"gain, {name}", "axis-name"),
        text(width - 1, 130, "better \u2192", "axis-name", "end"),
    ]
    return svg(width, 132, title, *parts)


def _interval(low: float, high: float, y: float, reach: float, kind: str = "") -> list[str]:
    """Draw a line with a cap at both ends, each from `reach` above to `reach` below."""
    caps = [line(end, y - reach, end, y + reach, f"cap{kind}") for end in (low, high)]
    return [line(low, y, high, y, f"whisker{kind}"), *caps]


def _signed_label(mark: float, marks: Sequence[float]) -> str:
    return ("+" if mark > 0 else "") + tick_label(mark, marks).replace("-", MINUS)


def gain_whisker(gain: Comparison, reach: tuple[float, float]) -> Markup:
    """Draw the gain of one metric as a dot with a whisker, on the axis of all metrics with the same unit."""
    width, height, unit = 240.0, 26.0, unit_of(gain)
    x = scale(reach[0], reach[1], 10, width - 10)
    certain = " certain" if gain.low > 0 or gain.high < 0 else " uncertain"
    parts = [
        line(10, 13, width - 10, 13, "rail"),
        line(x(0), 2, x(0), 24, "zero"),
        *_interval(x(gain.low), x(gain.high), 13, 5, certain),
        dot(x(gain.gain), 13, 4.5, f"gain-dot{certain}"),
    ]
    return svg(width, height, f"{unit.change(gain.gain)}, {unit.interval(gain.low, gain.high)}", *parts)


def gain_range(gains: Sequence[Comparison]) -> tuple[float, float]:
    """Return the lowest and the highest end of all intervals, and zero."""
    ends = [end for gain in gains for end in (gain.low, gain.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def histogram(bins: Sequence[Sequence[float]], marks: Sequence[tuple[str, float]], width: float) -> Markup:
    """Draw the number of rows by length in tokens; `marks` are named positions such as the median."""
    if not bins:
        return Markup("")
    low, high, most = bins[0][0], max(entry[1] for entry in bins), max(entry[2] for entry in bins) or 1
    x, y = scale(low, high, 8, width - 8), scale(0, most, 150, 34)
    steps = ticks(low, high, 4 if width < 500 else 8)
    parts = []
    for start, end, rows in bins:
        words = f"{start:g} to {end:g} tokens: {rows:,g} rows"
        parts.append(box(x(start), y(rows), x(end) - x(start) - 1, 150 - y(rows), "bar", words) if rows else "")
    parts.append(line(8, 150, width - 8, 150, "axis"))
    parts += [text(x(step), 167, tick_label(step, steps), "tick") for step in steps]
    for index, (name, at) in enumerate(marks):
        top = 13 * (index % 2)  # on two levels, so that the names of neighbours do not overlap
        anchor, gap = ("end", -4) if x(at) > width - 110 else ("start", 4)
        parts.append(line(x(at), 12 + top, x(at), 150, "wanted"))
        parts.append(text(x(at) + gap, 21 + top, name, "wanted-label", anchor))
    parts.append(text(width / 2, 186, "tokens in a row", "axis-name"))
    return svg(width, 192, "Rows by number of tokens", *parts)


def moving_average(values: Sequence[float]) -> list[float]:
    """Return the mean over a centred window of about 5 % of all values; a centred window does not lag."""
    sums = [0.0, *accumulate(values)]
    reach = len(values) // 40
    spans = [(max(0, at - reach), min(len(values), at + reach + 1)) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def downsample(points: Sequence[Point]) -> list[Point]:
    """Return at most `MAX_POINTS` points: the lowest and the highest of each group, so that spikes stay visible."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    ends = [(min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])) for group in groups]
    return [point for pair in ends for point in sorted(set(pair))]


def loss_curves(training: Training, width: float) -> Markup:
    """Draw train loss (each step and a moving average), validation loss, best checkpoint and learning rate."""
    if not training.steps:
        return Markup("")
    bottom, start, end = 262.0, 40.0, width - 12
    raw = [(float(step), loss) for step, loss, _ in training.steps]
    mean = list(zip((step for step, _ in raw), moving_average([loss for _, loss in raw]), strict=True))
    valid = [(float(step), loss) for step, loss, _ in training.valid]
    low, top = _loss_range([loss for _, loss in raw + valid])
    steps = [step for step, _ in raw + valid]
    x = scale(min(steps), max(steps), start, end)
    y = scale(low, top, bottom, 22)
    levels = ticks(low, top, 5)

    def placed(points: list[Point]) -> list[Point]:
        return [(x(step), y(min(max(loss, low), top))) for step, loss in points]

    parts = [
        *grid(levels, y, start, end),
        text(start, 12, "loss, nats per trained token", "axis-name", "start"),
        path(placed(downsample(raw)), "raw"),
        path(placed(downsample(mean)), "smooth"),
        path(placed(valid), "valid"),
    ]
    for at, (step, loss) in zip(placed(valid), valid, strict=True):
        parts.append(dot(*at, 3.5, "valid-dot", f"step {step:,.0f}: validation loss {loss:.4f}"))
    parts += [*_best(training, x, y, (start, end)), *_learning_rate(training, x, (start, end), bottom)]
    return svg(width, 352, "Loss by step", *parts)


def _loss_range(losses: list[float]) -> tuple[float, float]:
    """Return the range of the axis: all losses, unless spikes would flatten the rest."""
    losses = sorted(losses)
    usual = losses[int(0.985 * (len(losses) - 1))]
    low, high = losses[0] - 0.1 * abs(losses[0]), losses[-1] if losses[-1] < 2.5 * usual else usual
    return low, high + (0.04 * abs(high) or 1.0)


def _best(training: Training, x: Callable[[float], float], y: Callable[[float], float], ends: Point) -> list[str]:
    """Mark the checkpoint that was selected."""
    best = training.facts.get("best_step")
    loss = next((loss for step, loss, _ in training.valid if step == best), None)
    if best is None or loss is None:
        return []
    anchor = "end" if x(best) > (ends[0] + ends[1]) / 2 else "start"
    shift = -6 if anchor == "end" else 6
    return [
        line(x(best), 26, x(best), y(loss) - 8, "wanted"),
        dot(x(best), y(loss), 8, "best"),
        text(x(best) + shift, 34, f"best checkpoint: step {best:,}, {loss:.3f}", "best-label", anchor),
    ]


def _learning_rate(training: Training, x: Callable[[float], float], ends: Point, bottom: float) -> list[str]:
    rates = [(float(step), rate) for step, _, rate in training.steps]
    highest = max(rate for _, rate in rates)
    y = scale(0, highest, bottom + 68, bottom + 30)
    steps = ticks(rates[0][0], rates[-1][0], 4 if ends[1] < 500 else 8)
    return [
        text(ends[0], bottom + 18, f"learning rate, maximum {highest:.3g}", "axis-name", "start"),
        path([(x(step), y(rate)) for step, rate in downsample(rates)], "rate"),
        line(ends[0], bottom + 68, ends[1], bottom + 68, "axis"),
        *(text(x(step), bottom + 84, tick_label(step, steps), "tick") for step in steps),
        text(ends[1], bottom + 84, "step", "axis-name", "end") if x(steps[-1]) < ends[1] - 50 else "",
    ]
