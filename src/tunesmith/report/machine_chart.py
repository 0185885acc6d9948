"""The chart of memory and utilization during training."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from tunesmith.report import wording
from tunesmith.report.charts import downsample
from tunesmith.report.drawing import Point, grid, path, scale, svg, text, tick_label, ticks
from tunesmith.report.view import Training


class Curve(NamedTuple):
    """A measure of `Training.machine`, the owner to name in the legend, and the CSS class of its line."""

    name: str
    owner: str
    kind: str


MEMORY = (
    Curve("host_memory_gib", "whole machine", "raw"),
    Curve("memory_gib", "training", "smooth"),
    Curve("gpu_memory_gib", "GPU", "valid"),
)
UTILIZATION = (Curve("host_cpu", "whole machine", "raw"), Curve("gpu", "GPU", "valid"))


def legend(training: Training) -> list[tuple[str, str]]:
    """Return (CSS class, label) of the curves that are drawn."""
    drawn = [(curve.kind, curve.owner) for curve in (*MEMORY, *UTILIZATION) if curve.name in training.machine]
    return list(dict.fromkeys(drawn))


def machine_curves(training: Training, width: float) -> Markup:
    """Draw two panels over training time: memory in GiB at the top, utilization in percent below it."""
    if not any(len(points) > 1 for points in training.machine.values()):
        return Markup("")
    end = max(points[-1][0] for points in training.machine.values())
    unit, size = ("hours", 3600.0) if end > 7200 else ("minutes", 60.0) if end > 180 else ("seconds", 1.0)
    steps = ticks(0, end / size, 4 if width < 500 else 8)
    x = scale(0, end / size, 40, width - 12)
    highest = max((value for curve in MEMORY for _, value in training.machine.get(curve.name, ())), default=1.0)
    parts = [
        *_panel(training, MEMORY, "memory, GiB", (22, 142), 1.08 * highest, width, end),
        *_panel(training, UTILIZATION, "utilization, %", (182, 242), 1.0, width, end),
        *(text(x(step), 258, tick_label(step, steps), "tick") for step in steps),
        text(width / 2, 278, f"{unit} of training", "axis-name"),
    ]
    return svg(width, 282, "Memory and utilization during training", *parts)


def _panel(
    training: Training, curves: Sequence[Curve], name: str, place: Point, highest: float, width: float, end: float
) -> list[str]:
    """Draw curves from 0 to `highest` between two heights; utilization is labelled in percent."""
    top, bottom = place
    x, y = scale(0, end, 40, width - 12), scale(0, highest, bottom, top)
    factor = 100 if curves is UTILIZATION else 1
    levels = ticks(0, factor * highest, 2 if curves is UTILIZATION else 4)
    parts = grid(levels, lambda level: y(level / factor), 40, width - 12)
    parts.append(text(40, top - 10, name, "axis-name", "start"))
    for curve in curves:
        points = training.machine.get(curve.name, ())
        parts.append(path([(x(at), y(min(value, highest))) for at, value in downsample(points)], curve.kind))
    return parts


def utilization(training: Training) -> list[tuple[str, str]]:
    """Return the mean number of busy cores and the mean utilization of the GPU."""
    found = []
    for name, words in (("cpu_cores", "Busy processor cores"), ("gpu", "GPU utilization")):
        if points := training.machine.get(name):
            mean = sum(value for _, value in points) / len(points)
            found.append((words, f"{mean:.1f}" if name == "cpu_cores" else wording.percent(mean, 1)))
    return found
