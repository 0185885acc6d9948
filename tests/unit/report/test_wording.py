"""The values in the sentences of a verdict, its groups and guards, and the selected checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.verdicts import comparison, of_seeds, verdict
from tests.unit.report.conftest import MINUS, build_run, page_of, plain, verdict_json, write

from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Comparison, GroupChange, Grouping, Guard
from tunesmith.core.verdict_reader import parse_verdict
from tunesmith.report.collect import collect
from tunesmith.report.text import side_by_side
from tunesmith.report.wording import (
    CONCLUSIONS,
    checkpoint_sentence,
    guard_sentence,
    headline,
    scope_sentence,
    seed_sentences,
    verdict_sentence,
    visible,
)

NEEDED = {"rows_needed": 1240, "groups_needed": 1240}


@pytest.mark.parametrize(
    ("outcome", "changes", "values"),
    [
        ("better", {"min_gain": 0.0}, ("from 2.0 % to 88.0 %", "+86.0 points", "95 %", "+79.3 to +91.3", "150 rows")),
        (
            "not_better",
            {"base": 0.52, "tuned": 0.413, "gain": -0.107, "low": -0.18, "high": -0.033, "min_gain": 0.0},
            ("from 52.0 % to 41.3 %", f"{MINUS}10.7 points", f"{MINUS}18.0 to {MINUS}3.3"),
        ),
        (
            "not_better",
            {"base": 0.5, "tuned": 0.52, "gain": 0.02, "low": 0.0004, "high": 0.04},
            ("+2.0 points", "+0.04 to +4.00", "5.0 points"),
        ),
        (
            "cannot_tell",
            {"base": 0.5, "tuned": 0.5, "gain": 0.0, "low": -0.04, "high": 0.04, "min_gain": 0, **NEEDED},
            ("at 50.0 %", "0.0 points", f"{MINUS}4.0 to +4.0", "1,240 rows"),
        ),
        (
            "better",
            {"metric": "perplexity", "base": 12.4, "tuned": 8.1, "gain": 4.3, "low": 3.9, "high": 4.7, "min_gain": 0},
            ("from 12.40 to 8.10", "better by 4.30", "+3.90 to +4.70", "lower is better"),
        ),
    ],
)
def test_verdict_sentence_has_the_values(
    tmp_path: Path, outcome: str, changes: dict[str, Any], values: tuple[str, ...]
) -> None:
    """Report and terminal show the same sentence."""
    run = build_run(tmp_path, until="train")
    write(run.verdict, verdict_json(**changes))
    sentence = headline(collect(run))
    assert sentence.startswith(f"{CONCLUSIONS[outcome]}: ")
    for value in values:
        assert value in sentence
    assert side_by_side(run, 0).startswith(sentence)
    assert sentence.partition(": ")[2][1:] in plain(page_of(run).words)


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (comparison("loss", base=2.7, tuned=2.8, gain=-0.1, low=-0.12, high=-0.07, higher_is_better=False),
         ["by +0.100", "+0.070 to +0.120", "a rise of 0.050"]),
        (comparison("rougeL", base=0.41, tuned=0.33, gain=-0.08, low=-0.1, high=-0.06),
         [f"by {MINUS}8.0 points", f"{MINUS}10.0 to {MINUS}6.0", "a drop of 5.0 points"]),
    ],
)  # fmt: skip
def test_guard_is_in_the_direction_of_its_metric(change: Comparison, values: list[str]) -> None:
    sentence = guard_sentence(Guard(change, 0.05, "general"))
    for value in values:
        assert value in sentence


def test_failed_guard_is_shown(tmp_path: Path) -> None:
    run = build_run(tmp_path, until="train")
    rouge = comparison("rougeL", base=0.41, tuned=0.33, gain=-0.08, low=-0.1, high=-0.06)
    broken = verdict(comparison("execution"), rouge, guards=[("rougeL", 0.02)], reasons=["guard rougeL failed"])
    write(run.verdict, broken.to_json())
    sentence = guard_sentence(broken.guards[0])
    for value in ("ROUGE-L", f"{MINUS}8.0 points", f"{MINUS}10.0 to {MINUS}6.0", "2.0 points"):
        assert value in sentence
    for text in (plain(page_of(run).words), side_by_side(run, 0)):
        assert sentence in text
        assert "guard rougeL failed" in text


def test_visible_replaces_control_characters_only() -> None:
    """Line ends become line feeds."""
    for text in ("plain\ttext\n", "caf\u00e9 \u05e9\u05dc\u05d5\u05dd", "\U0001f469\u200d\U0001f4bb"):
        assert visible(text) == text
    assert visible("a\r\nb\rc\x7f\udcff") == "a\nb\u240dc\u2421\ufffd"


def validated(root: Path, by: str, step: int, value: float | None, scores: dict[str, list[float]]) -> RunDir:
    """Write a run with these scores of its validations; the first was before training."""
    run = build_run(root)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines.insert(0, {"kind": "valid", "step": 0, "loss": 3.1, "token_accuracy": 0.4, "tokens": 4121})
    for place, line in enumerate(line for line in lines if line["kind"] == "valid"):
        line |= {name: values[place] for name, values in scores.items() if place < len(values)}
    write(run.metrics, lines)
    manifest = json.loads((run.stage("train") / "manifest.json").read_text())
    write(run.stage("train") / "manifest.json", {**manifest, "chosen_by": by, "best_step": step, "best_value": value})
    return run


def test_scores_of_valid_rows_are_drawn_with_the_selected_checkpoint(tmp_path: Path) -> None:
    rising = [0.1 + 0.03 * place for place in range(11)]
    hostile = "mine:<img>\u202e"
    run = validated(tmp_path, "rougeL", 150, 0.4, {"rougeL": rising, "mine:words": [40.0, 12.5], hostile: [0.5] * 11})
    training = collect(run).training
    assert training is not None
    assert training.scores["rougeL"][:2] == ((0, 0.1), (15, pytest.approx(0.13)))
    assert training.scores["mine:words"] == ((0, 40.0), (15, 12.5))
    page = page_of(run)
    words = plain(page.words)
    sentence = checkpoint_sentence(training)
    for value in ("step 150", "ROUGE-L", "40.0 %", "loss 0.220", "95.0 %"):
        assert value in sentence
    assert sentence in words
    assert f"{sentence}.\n" in side_by_side(run, 0)
    for value in (
        "ROUGE-L, %",
        "step 0: 10.0 %",
        "step 150: 40.0 %",
        "step 15: 12.50",
        "<img>",
    ):
        assert value in words
    assert "img" not in page.tags
    chart = next(part for part in page.source.split("</svg>") if "step 150: 40.0 %" in part)
    assert chart.count('class="valid-dot"') == 11 + 2 + 11
    assert chart.count('class="best"') == 1
    assert chart.count('class="wanted"') == 3


@pytest.mark.parametrize(
    ("by", "step", "value", "values"),
    [
        ("loss", 105, 0.2142, ("step 105", "loss (0.214, ", "95.0 %")),
        ("token_accuracy", 105, 0.95, ("token accuracy (95.0 %, loss 0.214)",)),
        ("mine:words", 105, 7.0, ("words (7.00, loss 0.214, ", "95.0 %")),
        ("loss", 150, None, ("step 150",)),
    ],
)
def test_sentence_of_the_checkpoint_names_the_metric(
    tmp_path: Path, by: str, step: int, value: float | None, values: tuple[str, ...]
) -> None:
    run = validated(tmp_path, by, step, value, {})
    sentence = checkpoint_sentence(collect(run).training)
    for text in values:
        assert text in sentence
    assert sentence in plain(page_of(run).words)


def test_sentence_of_the_checkpoint_says_why_training_stopped(tmp_path: Path) -> None:
    run = validated(tmp_path, "loss", 105, 0.2142, {})
    path = run.stage("train") / "manifest.json"
    write(path, {**json.loads(path.read_text()), "stopped_early": "loss has not improved in 3 validations"})
    assert checkpoint_sentence(collect(run).training).endswith("step 150: loss has not improved in 3 validations")


def grouped(tmp_path: Path) -> RunDir:
    """Return an evaluated run whose 150 rows are in 30 groups by `pattern`, two of which fell."""
    run = build_run(tmp_path)
    fell = (
        GroupChange("count by city", rows=5, base=0.6, tuned=0.2, gain=-0.4),
        GroupChange("<b>sum</b>", rows=3, base=0.5, tuned=0.25, gain=-0.25),
    )
    grouping = Grouping("pattern", groups=30, rows=150, improved=27, worsened=2, fell=fell)
    write(run.verdict, verdict_json(groups=30, by_row=(0.81, 0.9), grouping=grouping))
    return run


def test_groups_are_counted_and_those_that_fell_are_listed(tmp_path: Path) -> None:
    run = grouped(tmp_path)
    page = plain(page_of(run).words)
    for text in (page, plain(side_by_side(run, 0))):
        assert "in 30 groups" in text
        assert "+81.0 to +90.0" in text  # counted by row
        assert "+79.3 to +91.3" in text  # counted by group
        assert "27 rose, 2 fell and 1 " in text
        assert "count by city" in text
        assert "\u221240.0" in text
    assert "<b>sum</b>" not in page_of(run).source


def test_too_few_groups_need_more_groups_and_not_more_rows() -> None:
    needed = {"groups": 3, "rows_needed": 300, "groups_needed": 6}
    sentence = verdict_sentence(parse_verdict(verdict_json(**needed, low=-1.0, high=1.0)))
    assert "150 rows in 3 groups" in sentence
    assert "6 groups" in sentence
    assert "300" not in sentence


@pytest.mark.parametrize(
    ("outcome", "low", "high", "is_margin"),
    [
        ("better", -0.066, -0.026, True),
        ("better", 0.01, 0.04, False),
        ("not_better", -0.2, -0.11, True),
        ("cannot_tell", -0.2, 0.1, True),
    ],
)
def test_negative_min_gain_is_a_margin_unless_the_gain_is_positive(
    outcome: str, low: float, high: float, is_margin: bool
) -> None:
    middle = (low + high) / 2
    changes = {"min_gain": -0.1, "low": low, "high": high, "gain": middle, "base": 0.5, "tuned": 0.5 + middle}
    found = parse_verdict(verdict_json(**changes))
    assert found.primary.verdict == outcome
    conclusion = verdict_sentence(found).partition(": ")[0]
    assert ("10.0 points" in conclusion) == is_margin
    assert (conclusion == CONCLUSIONS[outcome]) != is_margin


def test_corpus_scores_are_in_the_page_and_in_the_comparison(tmp_path: Path) -> None:
    run = build_run(tmp_path, until="evaluate")
    sides = {"base": 0.1656, "tuned": 0.201, "answers": 359, "signature": "nrefs:3|tok:13a"}
    write(run.verdict, verdict_json() | {"corpus": {"bleu": sides}})
    for text in (page_of(run).words, side_by_side(run, 0)):
        for part in ("BLEU", "16.6", "20.1", "359 answers", "nrefs:3|tok:13a"):
            assert part in text


def test_the_scope_of_the_interval_and_the_score_of_each_seed_are_shown(tmp_path: Path) -> None:
    run = build_run(tmp_path, until="train")
    write(run.verdict, verdict(of_seeds(0.01, 0.02, -0.03)).to_json())
    view = collect(run)
    assert view.verdict is not None
    assert "3 seeds" in headline(view)
    [sentence] = seed_sentences(view)
    assert sentence.count("45.0 %") == 3
    text = side_by_side(run, 0)
    assert scope_sentence(view.verdict.primary) in text
    assert scope_sentence(view.verdict.primary) != scope_sentence(comparison())
    assert f"{MINUS}3.0 to +8.0" in text
    assert seed_sentences(replace(view, verdict=verdict())) == []
