"""The page of a sweep: one self-contained HTML file in the style of a run's report."""

from pathlib import Path

from markupsafe import Markup

from tunesmith.core.files import write_json, write_text
from tunesmith.report.render import draw_both_widths, load_template, style_sheet
from tunesmith.sweep import chart
from tunesmith.sweep import text as sweep_text
from tunesmith.sweep.collect import SweepResult

_HERE = Path(__file__).parent
_SMALL = 470.0


def write_result(result: SweepResult) -> SweepResult:
    """Write the result of a sweep, finished or not, as `sweep.json` and `sweep.html`."""
    write_json(result.file, result.to_json())
    write_text(result.page, render(result))
    return result


def render(result: SweepResult) -> str:
    """Return the page as HTML."""
    drawn = [measure for measure in sweep_text.MEASURES if chart.is_drawable(result, measure)]
    axis_measures = [axis.measure for axis in result.axes if axis.measure in drawn]
    first = (axis_measures or drawn or ["tokens"])[0]  # the measure of the first axis, if the trials differ in it
    return load_template(_HERE / "sweep.html.j2").render(
        result=result,
        text=sweep_text,
        style=style_sheet() + Markup((_HERE / "sweep.css").read_text(encoding="utf-8")),
        main_chart=draw_both_widths(lambda width: chart.draw_scores(result, first, width)),
        charts=[chart.draw_scores(result, name, _SMALL, 260) for name in drawn if name != first],
    )
