"""The comparison of several models as one HTML file, with the parts of the report."""

from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.core.files import write_text
from tunesmith.report import charts, wording
from tunesmith.report.answers import join_answers, model_answer
from tunesmith.report.comparison import ModelComparison, Pair
from tunesmith.report.render import answer_parts, draw_both_widths, render_page, split_headline
from tunesmith.report.sections import answer_problems
from tunesmith.report.unit import unit_of
from tunesmith.report.view import Answers


def write_comparison(comparison: ModelComparison, path: Path) -> None:
    """Write the page of a comparison: the verdicts of all pairs, the scores, and the answers side by side."""
    answers, names = _answers(comparison), [model.name for model in comparison.models]
    labels, scores = comparison.scores()
    page = render_page(
        "compare.html.j2",
        comparison=comparison,
        **_hero(comparison),
        reasons=comparison.reasons(),
        sentences=[(pair.verdict.primary.verdict, comparison.sentence(pair)) for pair in comparison.pairs],
        pair_rows=_pair_rows(comparison),
        score_names=labels,
        score_rows=list(zip(names, scores, strict=True)),
        corpus=comparison.corpus_sentences(),
        problems=answer_problems([model.health for model in comparison.models]),
        answers=answers,
        answer_parts=answer_parts(answers),
        prompt_note=_prompt_note(comparison),
    )
    write_text(path, page)


def _hero(comparison: ModelComparison) -> dict[str, str | Markup]:
    """Return the verdict on a pair; of more models, the one that is better than all others."""
    if len(comparison.pairs) == 1:
        [pair] = comparison.pairs
        headline, evidence = split_headline(comparison.sentence(pair))
        chart = draw_both_widths(partial(charts.gain_axis, pair.verdict.primary))
        return {"kind": pair.verdict.primary.verdict, "headline": headline, "evidence": evidence, "gain_chart": chart}
    wins = [_winner(pair) for pair in comparison.pairs]
    others = len(comparison.models) - 1
    best = next((model.name for place, model in enumerate(comparison.models) if wins.count(place) == others), None)
    headline = f"{best} is better than all others" if best else "No model is shown to be better than all others"
    rows = f"{wording.metric_label(comparison.metric)} on {wording.count(len(comparison.examples))} test rows"
    evidence = f"{rows[0].upper()}{rows[1:]} of {comparison.run}."
    return {"kind": "better" if best else "cannot_tell", "headline": headline, "evidence": evidence, "gain_chart": ""}


def _winner(pair: Pair) -> int | None:
    """Return the place of the better model of a pair; None if the rows do not show it."""
    primary = pair.verdict.primary
    if primary.verdict == "better":
        return pair.second
    return pair.first if primary.verdict == "not_better" and primary.high < 0 else None


def _pair_rows(comparison: ModelComparison) -> list[tuple[str, list[tuple[str, str]], list[tuple[Any, ...]]]]:
    """Return (metric, [the names of each pair], [(comparison, unit, drawing)]), the primary metric first."""
    models, rows = comparison.models, []
    for metric in dict.fromkeys([comparison.metric, *(name for p in comparison.pairs for name in p.verdict.metrics)]):
        pairs = [pair for pair in comparison.pairs if metric in pair.verdict.metrics]
        gains = [pair.verdict.metrics[metric] for pair in pairs]
        reach = charts.gain_range(gains)
        names = [(models[pair.first].name, models[pair.second].name) for pair in pairs]
        rows.append((metric, names, [(gain, unit_of(gain), charts.gain_whisker(gain, reach)) for gain in gains]))
    return rows


def _answers(comparison: ModelComparison) -> Answers:
    """Return the answers to all rows that a model was asked about, with the prompt of the first such model."""
    lines, sides = [], []
    for place in range(len(comparison.examples)):
        asked = [model.answers[place] for model in comparison.models]
        if not any(asked):
            continue
        lines.append(dict(next(samples[0] for samples in asked if samples)))
        sides.append(
            tuple(
                model_answer(
                    samples[0] if samples else None,
                    model.scores[place],
                    comparison.metric,
                    [str(line["prediction"]) for line in samples[1:]],
                )
                for model, samples in zip(comparison.models, asked, strict=True)
            )
        )
    models = [model.name for model in comparison.models]
    return join_answers(models, lines, sides, comparison.pairs[0].verdict.primary)


def _prompt_note(comparison: ModelComparison) -> str:
    """Return whose prompts are shown."""
    first, *others = comparison.models
    for model in others:
        for mine, theirs in zip(first.answers, model.answers, strict=True):
            if mine and theirs and mine[0]["prompt"] != theirs[0]["prompt"]:
                return f"The prompts are those of {first.name}; each model answered through its own template."
    return "All models answered the same prompts."
