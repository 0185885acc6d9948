"""The sentences of a verdict, of its groups and guards, and of what chose the checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.verdicts import comparison, verdict
from tests.unit.report.conftest import MINUS, build_run, page_of, plain, verdict_json, write

from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import GroupChange, Grouping
from tunesmith.core.verdict_reader import parse_verdict
from tunesmith.report.collect import collect
from tunesmith.report.text import side_by_side
from tunesmith.report.wording import guard_sentence, headline, verdict_sentence, visible

NEEDED = {"rows_needed": 1240, "groups_needed": 1240}


@pytest.mark.parametrize(
    ("verdict", "changes", "sentence"),
    [
        (
            "better",
            {"min_gain": 0.0},
            "The tuned model is better: execution accuracy rose from 2.0 % to 88.0 % "
            "(+86.0 points, 95 % interval +79.3 to +91.3, 150 rows).",
        ),
        (
            "not_better",
            {"base": 0.52, "tuned": 0.413, "gain": -0.107, "low": -0.18, "high": -0.033, "min_gain": 0.0},
            "The tuned model is not better: execution accuracy fell from 52.0 % to 41.3 % "
            f"({MINUS}10.7 points, 95 % interval {MINUS}18.0 to {MINUS}3.3, 150 rows).",
        ),
        (
            "not_better",
            {"base": 0.5, "tuned": 0.52, "gain": 0.02, "low": 0.0004, "high": 0.04},
            "The tuned model is not better: execution accuracy rose from 50.0 % to 52.0 % (+2.0 points, "
            "95 % interval +0.04 to +4.00, 150 rows); a gain of more than 5.0 points was asked for.",
        ),
        (
            "cannot_tell",
            {"base": 0.5, "tuned": 0.5, "gain": 0.0, "low": -0.04, "high": 0.04, "min_gain": 0, **NEEDED},
            "It cannot be told whether the tuned model is better: execution accuracy stayed at 50.0 % "
            f"(0.0 points, 95 % interval {MINUS}4.0 to +4.0, 150 rows). About 1,240 rows would settle it.",
        ),
        (
            "better",
            {"metric": "perplexity", "base": 12.4, "tuned": 8.1, "gain": 4.3, "low": 3.9, "high": 4.7, "min_gain": 0},
            "The tuned model is better: perplexity fell from 12.40 to 8.10 "
            "(better by 4.30, 95 % interval +3.90 to +4.70, 150 rows; lower is better).",
        ),
    ],
)
def test_verdict_sentences(tmp_path: Path, verdict: str, changes: dict[str, Any], sentence: str) -> None:
    """Each verdict is one plain sentence with its interval; report and terminal say the same."""
    run = build_run(tmp_path, until="train")
    whole = verdict_json(**changes)
    assert whole["verdict"] == verdict
    write(run.verdict, whole)
    assert headline(collect(run)) == sentence
    assert side_by_side(run, 0).startswith(sentence)
    assert sentence.partition(": ")[2][1:] in plain(page_of(run).words)


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


def test_visible() -> None:
    """Ordinary text in any language passes unchanged; line ends become one kind."""
    for text in ("plain\ttext\n", "caf\u00e9 \u05e9\u05dc\u05d5\u05dd", "\U0001f469\u200d\U0001f4bb"):
        assert visible(text) == text
    assert visible("a\r\nb\rc\x7f\udcff") == "a\nb\u240dc\u2421\ufffd"


def validated(root: Path, by: str, step: int, value: float | None, scores: dict[str, list[float]]) -> RunDir:
    """Write a run whose validations, the first before training, found these scores."""
    run = build_run(root)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines.insert(0, {"kind": "valid", "step": 0, "loss": 3.1, "token_accuracy": 0.4, "tokens": 4121})
    for place, line in enumerate(line for line in lines if line["kind"] == "valid"):
        line |= {name: values[place] for name, values in scores.items() if place < len(values)}
    write(run.metrics, lines)
    manifest = json.loads((run.stage("train") / "manifest.json").read_text())
    write(run.stage("train") / "manifest.json", {**manifest, "chosen_by": by, "best_step": step, "best_value": value})
    return run


def test_scores_of_valid_rows_are_drawn_and_what_chose_the_checkpoint_is_said(tmp_path: Path) -> None:
    rising = [0.1 + 0.03 * place for place in range(11)]
    hostile = "mine:<img>\u202e"
    run = validated(tmp_path, "rougeL", 150, 0.4, {"rougeL": rising, "mine:words": [40.0, 12.5], hostile: [0.5] * 11})
    training = collect(run).training
    assert training is not None
    assert training.scores["rougeL"][:2] == ((0, 0.1), (15, pytest.approx(0.13)))
    assert training.scores["mine:words"] == ((0, 40.0), (15, 12.5))
    page = page_of(run)
    words = plain(page.words)
    sentence = (
        "The checkpoint of step 150 was the best on the validation rows by ROUGE-L (40.0 %, loss 0.220, 95.0 % of"
    )
    assert f"{sentence} tokens right); it is the one that was evaluated." in words
    assert f"{sentence} tokens right).\n" in side_by_side(run, 0)
    for told in (
        "Answers to validation rows",
        "ROUGE-L, %",
        "step 0: 10.0 %",
        "step 150: 40.0 %",
        "step 15: 12.50",
        "<img>",
    ):
        assert told in words
    assert "img" not in page.tags
    chart = page.source.partition("Scores of answers to validation rows by step")[2].partition("</svg>")[0]
    assert chart.count('class="valid-dot"') == 11 + 2 + 11
    assert chart.count('class="best"') == 1
    assert chart.count('class="wanted"') == 3


@pytest.mark.parametrize(
    ("by", "step", "value", "sentence"),
    [
        ("loss", 105, 0.2142, "was the best on the validation rows by loss (0.214, 95.0 % of tokens right);"),
        ("token_accuracy", 105, 0.95, "by token accuracy (95.0 %, loss 0.214);"),
        ("mine:words", 105, 7.0, "by words (7.00, loss 0.214, 95.0 % of tokens right);"),
        ("loss", 150, None, "No validation rows: the last checkpoint, step 150, counts;"),
    ],
)
def test_whatever_chose_the_checkpoint_is_said(
    tmp_path: Path, by: str, step: int, value: float | None, sentence: str
) -> None:
    words = plain(page_of(validated(tmp_path, by, step, value, {})).words)
    assert sentence in words
    assert "Answers to validation rows" not in words


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


def test_rows_of_one_pattern_are_reported_as_groups(tmp_path: Path) -> None:
    run = grouped(tmp_path)
    page = plain(page_of(run).words)
    for text in (page, plain(side_by_side(run, 0))):
        assert "150 rows in 30 groups" in text
        assert "+81.0 to +90.0" in text  # counted by row
        assert "+79.3 to +91.3" in text  # counted by group
        assert "27 rose, 2 fell and 1 stayed" in text
        assert "count by city" in text
        assert "\u221240.0" in text
    assert "<b>sum</b>" not in page_of(run).source


def test_too_few_groups_are_not_settled_by_more_rows() -> None:
    needed = {"groups": 3, "rows_needed": 300, "groups_needed": 6}
    sentence = verdict_sentence(parse_verdict(verdict_json(**needed, low=-1.0, high=1.0)))
    assert "150 rows in 3 groups" in sentence
    assert "At least 6 groups" in sentence
    assert "300" not in sentence


@pytest.mark.parametrize(
    ("word", "low", "high", "headline"),
    [
        ("better", -0.066, -0.026, "The tuned model is not worse than the base by more than 10.0 points"),
        ("better", 0.01, 0.04, "The tuned model is better"),
        ("not_better", -0.2, -0.11, "The tuned model is worse than the base by more than 10.0 points"),
        ("cannot_tell", -0.2, 0.1, "It cannot be told whether the tuned model is worse than the base"),
    ],
)
def test_a_negative_min_gain_is_a_margin_and_never_called_better(
    word: str, low: float, high: float, headline: str
) -> None:
    middle = (low + high) / 2
    changes = {"min_gain": -0.1, "low": low, "high": high, "gain": middle, "base": 0.5, "tuned": 0.5 + middle}
    found = parse_verdict(verdict_json(**changes))
    assert found.primary.verdict == word
    sentence = verdict_sentence(found)
    assert sentence.startswith(headline)
    assert not ("is better" in sentence and "fell" in sentence)
