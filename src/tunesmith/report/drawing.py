"""The elements of the charts, as SVG text. `kind` is their CSS class."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from tunesmith.report.wording import visible

Point = tuple[float, float]


def svg(width: float, height: float, title: str, *parts: str) -> Markup:
    """Return an SVG of these parts that scales to its container; screen readers read its title."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(visible(title))}">'
    return Markup(head + "".join(parts) + "</svg>")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """Draw text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(visible(words))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, radius: float, kind: str, title: str = "") -> str:
    """Draw a dot, with a tooltip."""
    inside = f"<title>{escape(visible(title))}</title>" if title else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}">{inside}</circle>'


def box(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """Draw a rectangle with slightly rounded corners, with a tooltip."""
    inside = f"<title>{escape(visible(title))}</title>" if title else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="1.5" class="{kind}">{inside}</rect>'


def path(points: Sequence[Point], kind: str) -> str:
    """Draw a line through all points."""
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{steps}" class="{kind}"/>'


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return a function from values low..high to positions start..end."""
    span = (high - low) or 1.0
    return lambda number: start + (number - low) / span * (end - start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers that divide low..high into about `about` parts."""
    rough = (high - low) / max(about, 1)
    if not rough > 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_label(number: float, all_ticks: Sequence[float]) -> str:
    """Return the label of a tick, with as many decimals as the distance of the ticks needs."""
    step = abs(all_ticks[1] - all_ticks[0]) if len(all_ticks) > 1 else abs(number) or 1.0
    return f"{number:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def grid(levels: Sequence[float], y: Callable[[float], float], left: float, right: float) -> list[str]:
    """Draw a horizontal line at each level, with its label at the left."""
    lines = [line(left, y(level), right, y(level), "grid") for level in levels]
    return lines + [text(left - 6, y(level) + 4, tick_label(level, levels), "tick", "end") for level in levels]
