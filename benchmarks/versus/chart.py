"""Draw speed against row length, batch, model size and processes, each as a self-contained SVG."""

import math
from collections.abc import Sequence
from typing import Any

from tunesmith.report.drawing import Point, dot, line, path, scale, svg, text, tick_label, ticks

_WIDTH, _PANEL, _TOP, _BOTTOM = 960.0, 300.0, 40.0, 220.0
_SERIES = (
    ("row length", "tokens a row"),
    ("rows a step", "rows per step, 128 tokens each"),
    ("model size", "parameters"),
)
_PROCESSES = (
    ("lora", "none", "processes, LoRA"),
    ("lora", "full", "the same, sharded"),
    ("full", "none", "processes, all weights"),
    ("full", "full", "the same, sharded"),
)
_NARROW = 220.0  # four charts in a row
_SIZES = {"135M": 135.0, "360M": 360.0, "1.1B": 1100.0}
# Documentation pages have light and dark themes.
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#57606a}.grid{stroke:#8c959f;stroke-opacity:.3}"
    ".axis{stroke:#8c959f}.curve{fill:none;stroke:#2f81f7;stroke-width:2}.point{fill:#2f81f7}"
    ".bar{stroke:#bf8700;stroke-width:14;stroke-opacity:.6}.name{font-weight:600}</style>"
)


def draw(entries: Sequence[dict[str, Any]]) -> str:
    """Return the SVG of the entries of `scaling`."""
    panels = []
    for number, (series, what) in enumerate(_SERIES):
        panels += _panel(entries, series, what, left=20 + number * (_PANEL + 15))
    return _alone("Tokens per second by row length, rows per step and model size", panels)


def draw_processes(entries: Sequence[dict[str, Any]]) -> str:
    """Return the SVG of the entries of `processes`: measurements as a curve, estimates of `plan` as vertical bars."""
    panels = []
    for number, (tuning, sharding, what) in enumerate(_PROCESSES):
        own = [
            {"series": what, "at": str(entry["processes"]), **entry}
            for entry in entries
            if entry.get("tuning") == tuning and (entry["sharding"] == sharding or entry["processes"] == 1)
        ]
        panels += _panel(own, what, what, left=20 + number * (_NARROW + 15), width=_NARROW)
    return _alone("Tokens per second by processes, measured and estimated", panels)


def _alone(title: str, panels: Sequence[str]) -> str:
    drawn = svg(_WIDTH, 270, title, _STYLE, *panels)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _panel(entries: Sequence[dict[str, Any]], series: str, what: str, left: float, width: float = _PANEL) -> list[str]:
    """Draw one series: logarithmic x axis, speed from zero."""
    own = [entry for entry in entries if entry.get("series") == series and entry.get("tokens_per_second")]
    if not own:
        return []
    start, end = left + 44, left + width - 16
    places = [math.log(_SIZES.get(entry["at"]) or float(entry["at"])) for entry in own]
    speeds = [float(entry["tokens_per_second"]) for entry in own]
    x = scale(min(places), max(places), start + 8, end - 8)
    estimates = [entry.get("foreseen") or [] for entry in own]
    highest = 1.1 * max([*speeds, *(high for bar in estimates for high in bar)])
    levels = ticks(0, highest, 4)
    y = scale(0, highest, _BOTTOM, _TOP)
    points: list[Point] = [(x(place), y(speed)) for place, speed in zip(places, speeds, strict=True)]
    places_of = list(zip(points, own, strict=True))
    return [
        text(start, _TOP - 14, "tokens/s", "name", "start"),
        *(line(start, y(level), end, y(level), "grid") for level in levels),
        *(text(start - 6, y(level) + 4, tick_label(level, levels), "", "end") for level in levels),
        line(start, _BOTTOM, end, _BOTTOM, "axis"),
        *(line(x(at), y(b[0]) + 2, x(at), y(b[1]) - 2, "bar") for at, b in zip(places, estimates, strict=True) if b),
        path(points, "curve"),
        *(dot(*at, 3.5, "point", f"{entry['at']}: {entry['tokens_per_second']:g}") for at, entry in places_of),
        *(text(at[0], _BOTTOM + 18, entry["at"]) for at, entry in places_of),
        text((start + end) / 2, _BOTTOM + 38, what, "name"),
    ]  # fmt: skip
