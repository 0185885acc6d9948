"""The ladder's page: one HTML file that opens anywhere and asks the network for nothing, drawn like a run's report."""

from pathlib import Path

from markupsafe import Markup

from tunesmith.core.files import write_json, write_text
from tunesmith.ladder import chart, words
from tunesmith.ladder.collect import Result
from tunesmith.report.render import both_widths, style, template

_HERE = Path(__file__).parent
_SMALL = 470.0


def write_result(result: Result) -> Result:
    """Write the result of a ladder, finished or not, as `ladder.json` and `ladder.html`."""
    write_json(result.file, result.to_json())
    write_text(result.page, render(result))
    return result


def render(result: Result) -> str:
    """Return the page as HTML."""
    drawn = [measure for measure in words.MEASURES if chart.drawable(result, measure)]
    asked = [axis.measure for axis in result.axes if axis.measure in drawn]
    first = (asked or drawn or ["tokens"])[0]  # what the first axis makes small, if the rungs differ in it
    return template(_HERE / "ladder.html.j2").render(
        result=result,
        said=words,
        style=style() + Markup((_HERE / "ladder.css").read_text(encoding="utf-8")),
        headline=words.headline(result),
        evidence=words.evidence(result),
        main_chart=both_widths(lambda width: chart.against(result, first, width)),
        charts=[(words.MEASURES[name], chart.against(result, name, _SMALL, 260)) for name in drawn if name != first],
        measures=words.telling(result),
        bar=words.bar_words(result),
    )
