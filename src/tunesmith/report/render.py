"""The report: one HTML file that opens anywhere, asks the network for nothing and runs no text of model or data."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from tunesmith.core.files import write_text
from tunesmith.core.rundir import RunDir
from tunesmith.report import charts, machine_chart, score_chart, sections, wording
from tunesmith.report.collect import collect
from tunesmith.report.unit import unit_of
from tunesmith.report.view import View

_HERE = Path(__file__).parent
WIDE, NARROW = 1000.0, 380.0
_LENGTH_MARKS = {"median": "median", "p95": "95 % are below"}


def write_report(run: RunDir) -> Path:
    """Write the report of a run, finished or not, and return its path."""
    write_text(run.report, render(collect(run)))
    return run.report


def render(view: View) -> str:
    """Return the report as HTML."""
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    return template(_HERE / "report.html.j2").render(
        view=view,
        style=style(),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_hero(view),
        **_evaluation(view),
        **_training(view),
        **_data(view),
        facts=sections.facts(view),
        speeds=sections.speeds(view),
    )


def template(path: Path) -> Template:
    """Return a page's template, which escapes every value and makes it visible."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=wording, unit_of=unit_of)
    return environment.get_template(path.name)


def style() -> Markup:
    """Return the style sheet that all pages share: light, dark and print."""
    return Markup((_HERE / "report.css").read_text(encoding="utf-8"))


def script_json(value: Any) -> Markup:
    """Return JSON that may stand in a script element: nothing in it can close or open a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _shown(value: Any) -> Any:
    """Make every text that the template writes visible before it is escaped."""
    return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def both_widths(draw: Callable[[float], Markup]) -> Markup:
    """Draw twice: text in an SVG shrinks with it, so the page shows the drawing that its own width suits."""
    wide, narrow = draw(WIDE), draw(NARROW)
    if not wide:
        return Markup("")
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _hero(view: View) -> dict[str, Any]:
    first, _, rest = re.sub(" (?=%|rows|points)", "\u00a0", wording.headline(view)).partition(": ")
    verdict = view.verdict
    return {
        "kind": verdict.primary.verdict if verdict else "none",
        "headline": first,
        "evidence": rest[:1].upper() + rest[1:],
        "gain_chart": both_widths(lambda width: charts.gain_axis(verdict.primary, width)) if verdict else "",
    }


def _evaluation(view: View) -> dict[str, Any]:
    metrics = [(found, unit_of(found)) for found in view.verdict.metrics.values()] if view.verdict else []
    shares = charts.reach_of([found for found, unit in metrics if unit.is_share])
    rows = [
        (found, unit, charts.metric_gain(found, shares if unit.is_share else charts.reach_of([found])))
        for found, unit in metrics
    ]
    payload = sections.payload(view.answers) if view.answers else None
    return {
        "metric_rows": rows,
        "health": sections.health(view.verdict) if view.verdict else [],
        "filters": sections.filters(view.answers) if view.answers else [],
        "payload": payload,
        "payload_json": script_json(payload),
        "first_rows": payload["rows"][: sections.ROWS_WITHOUT_SCRIPT] if payload else [],
    }


def _training(view: View) -> dict[str, Any]:
    training = view.training
    if training is None:
        return {"loss_chart": "", "score_chart": "", "chosen": "", "machine_chart": "", "machine_legend": []}
    return {
        "loss_chart": both_widths(lambda width: charts.loss_curves(training, width)),
        "score_chart": both_widths(lambda width: score_chart.score_curves(training, width)),
        "chosen": wording.chosen(training),
        "machine_chart": both_widths(lambda width: machine_chart.machine_curves(training, width)),
        "machine_legend": machine_chart.legend(training),
    }


def _data(view: View) -> dict[str, Any]:
    lengths = (view.prepared.get("lengths") or {}).get("train") or {}
    named = [(f"{name} {lengths[key]:,g}", lengths[key]) for key, name in _LENGTH_MARKS.items() if lengths.get(key)]
    draw = both_widths(lambda width: charts.histogram(lengths.get("histogram") or [], named, width))
    return {
        "splits": sections.splits(view.prepared),
        "blocks": sections.blocks(view.prepared),
        "lost": sections.lost(view),
        "mixture": sections.mixture(view.prepared),
        "copies": sections.copies(view.prepared),
        "length_chart": draw,
        "token_rows": sections.token_rows(view.samples),
    }
