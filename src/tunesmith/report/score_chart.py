"""The chart of the scores of answers to valid rows during training, one panel per metric."""

from collections.abc import Sequence

from markupsafe import Markup

from tunesmith.report import wording
from tunesmith.report.drawing import Point, dot, grid, line, path, scale, svg, text, tick_label, ticks
from tunesmith.report.unit import Unit
from tunesmith.report.view import Training

_PANEL = 118.0
_LEFT, _RIGHT = 40.0, 12.0


def score_curves(training: Training, width: float) -> Markup:
    """Draw the mean of each metric at every validation, with the base at step 0, and mark the selected step."""
    if not training.scores:
        return Markup("")
    last = max([1.0, *(step for points in training.scores.values() for step, _ in points)])
    height = _PANEL * len(training.scores)
    steps = ticks(0, last, 4 if width < 500 else 8)
    x = scale(0, last, _LEFT, width - _RIGHT)
    parts = []
    for place, (name, points) in enumerate(training.scores.items()):
        parts += _panel(training, name, points, _PANEL * place, width, last)
    parts += [text(x(step), height + 12, tick_label(step, steps), "tick") for step in steps]
    parts.append(text(width / 2, height + 30, "step", "axis-name"))
    return svg(width, height + 34, "Scores of answers to validation rows by step", *parts)


def _panel(training: Training, name: str, points: Sequence[Point], top: float, width: float, last: float) -> list[str]:
    """Draw one metric below the height `top`."""
    values = [value for _, value in points]
    unit = Unit.of(name, *values)
    room = 0.12 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
    low, high = min(values) - room, max(values) + room
    x, y = scale(0, last, _LEFT, width - _RIGHT), scale(low, high, top + _PANEL - 12, top + 24)
    levels = ticks(unit.factor * low, unit.factor * high, 3)
    parts = grid(levels, lambda level: y(level / unit.factor), _LEFT, width - _RIGHT)
    label = wording.metric_label(name) + (", %" if unit.is_share else "")
    parts.append(text(_LEFT, top + 12, label, "axis-name", "start"))
    best = training.facts.get("best_step")
    if best is not None:
        parts.append(line(x(best), top + 20, x(best), top + _PANEL - 10, "wanted"))
    parts.append(path([(x(step), y(value)) for step, value in points], "valid"))
    for step, value in points:
        tooltip = f"step {step:,.0f}: {unit.value(value)}"
        parts.append(dot(x(step), y(value), 3.5, "valid-dot", tooltip))
        if step == best and name == training.facts.get("chosen_by"):
            parts.append(dot(x(step), y(value), 8, "best"))
    return parts
