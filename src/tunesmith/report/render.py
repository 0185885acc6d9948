"""The report: one HTML file without network access, in which text of the model or the data is never executed."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from tunesmith.core.files import write_text
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Comparison, Verdict
from tunesmith.report import charts, machine_chart, score_chart, sections, wording
from tunesmith.report.collect import collect
from tunesmith.report.unit import Unit, unit_of
from tunesmith.report.view import Answers, RunView

_HERE = Path(__file__).parent
WIDE, NARROW = 1000.0, 380.0
_LENGTH_MARKS = {"median": "median", "p95": "95th percentile"}


def write_report(run: RunDir) -> Path:
    """Write the report of a run, finished or not, and return its path."""
    write_text(run.report, render(collect(run)))
    return run.report


def render(view: RunView) -> str:
    """Return the report as HTML."""
    training = view.training
    return render_page(
        "report.html.j2",
        view=view,
        answer_parts=answer_parts(view.answers) if view.answers else None,
        **_hero(view),
        **_evaluation(view),
        loss_chart=draw_both_widths(partial(charts.loss_curves, training)),
        score_chart=draw_both_widths(partial(score_chart.score_curves, training)),
        chosen=wording.checkpoint_sentence(training),
        machine_chart=draw_both_widths(partial(machine_chart.machine_curves, training)),
        machine_legend=machine_chart.legend(training),
        **_data(view),
        facts=sections.facts(view),
        speeds=sections.performance(view),
    )


def render_page(template: str, **values: Any) -> str:
    """Return a page that extends `page.html.j2`, with the style sheet and the script of all pages."""
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return load_template(_HERE / template).render(
        style=style_sheet(), script=Markup(script), script_digest=digest, **values
    )


def answer_parts(answers: Answers) -> dict[str, Any]:
    """Return the values of the section with the answers side by side (`answers.html.j2`)."""
    payload = sections.answer_payload(answers)
    return {
        "payload": payload,
        "json": htmlsafe_json_dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
        "filters": sections.answer_filters(answers),
        "first_rows": payload["rows"][: sections.ROWS_WITHOUT_SCRIPT],
        "empty_row": [0, "", "", "", 0, None, [[[], [], "", []] for _ in answers.models]],
    }


def split_headline(sentence: str) -> tuple[str, str]:
    """Return a verdict's conclusion and its evidence; numbers and their units stay on one line."""
    first, _, rest = re.sub(" (?=%|rows|points)", "\u00a0", sentence).partition(": ")
    return first, rest[:1].upper() + rest[1:]


def load_template(path: Path) -> Template:
    """Return a template that escapes every value and replaces invisible characters."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        finalize=_make_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=wording, unit_of=unit_of)
    return environment.get_template(path.name)


def style_sheet() -> Markup:
    """Return the style sheet of all pages, for light, dark and print."""
    return Markup((_HERE / "report.css").read_text(encoding="utf-8"))


def _make_visible(value: Any) -> Any:
    """Replace the invisible characters of a text before the template escapes it."""
    return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def draw_both_widths(draw: Callable[[float], Markup]) -> Markup:
    """Draw for wide and for narrow pages, and let the page show one: the text in an SVG shrinks with the drawing."""
    wide, narrow = draw(WIDE), draw(NARROW)
    if not wide:
        return Markup("")
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _hero(view: RunView) -> dict[str, Any]:
    headline, evidence = split_headline(wording.headline(view))
    verdict = view.verdict
    return {
        "kind": verdict.primary.verdict if verdict else "none",
        "headline": headline,
        "evidence": evidence,
        "gain_chart": draw_both_widths(partial(charts.gain_axis, verdict.primary)) if verdict else "",
    }


def _evaluation(view: RunView) -> dict[str, Any]:
    return {
        "metric_rows": _metric_rows(view.verdict.metrics) if view.verdict else [],
        "health": sections.pair_problems(view.verdict.health) if view.verdict else [],
        "sets": _set_tables(view.verdict) if view.verdict else [],
    }


def _metric_rows(metrics: Mapping[str, Comparison]) -> list[tuple[Comparison, Unit, Markup]]:
    """Return the rows of a table of metrics: the comparison, its unit and the drawing of its interval."""
    found = [(comparison, unit_of(comparison)) for comparison in metrics.values()]
    shares = charts.gain_range([comparison for comparison, unit in found if unit.is_share])
    ranges = [shares if unit.is_share else charts.gain_range([comparison]) for comparison, unit in found]
    return [(*row, charts.gain_whisker(row[0], span)) for row, span in zip(found, ranges, strict=True)]


def _set_tables(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the tables of the further held-out sets, each with the metric that its guard decides by."""
    guarded = {guard.set: guard.comparison.metric for guard in verdict.guards}
    return [
        {
            "title": wording.set_title(name, found),
            "rows": _metric_rows(found.metrics),
            "guarded": guarded[name],
            "health": sections.pair_problems(found.health) if found.health else [],
        }
        for name, found in verdict.also.items()
    ]


def _data(view: RunView) -> dict[str, Any]:
    lengths = (view.prepared.get("lengths") or {}).get("train") or {}
    named = [(f"{name} {lengths[key]:,g}", lengths[key]) for key, name in _LENGTH_MARKS.items() if lengths.get(key)]
    bins = lengths.get("histogram") or []
    return {
        "splits": sections.split_counts(view.prepared),
        "blocks": sections.blocks_sentence(view.prepared),
        "lost": sections.unused_rows(view),
        "mixture": sections.source_counts(view.prepared),
        "copies": sections.duplicates(view.prepared),
        "length_chart": draw_both_widths(partial(charts.histogram, bins, named)),
        "token_rows": sections.token_rows(view.samples),
    }
