"""The page of a comparison: the verdicts of all pairs, the scores, and the answers of all models side by side."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

from tests.unit.report.conftest import Page, plain
from tests.unit.report.test_comparison import RESULT, comparison, model

from tunesmith.report.comparison import ModelComparison, Pair
from tunesmith.report.comparison_page import write_comparison

SCORES: tuple[dict[str, float], ...] = ({"exact_match": 1.0}, {"exact_match": 0.0})


def page_of(result: ModelComparison, folder: Path) -> Page:
    write_comparison(result, folder / "comparison.html")
    return Page(folder / "comparison.html")


def test_several_models_have_pairs_scores_and_answers(tmp_path: Path) -> None:
    two = replace(RESULT.models[1], scores=({"exact_match": 1.0}, {"exact_match": 1.0}))
    others = [replace(one, scores=SCORES) for one in (RESULT.models[0], RESULT.models[2])]
    page = page_of(replace(RESULT, models=(others[0], two, others[1])), tmp_path)
    words = plain(page.words)
    assert "two is better than all others" in words
    assert "hold together at 95 %" in words
    for pair in ("two is better than one", "three is worse than two", "whether three is better than one"):
        assert pair in words
    assert "two against one 0.0 % 50.0 % +50.0" in words
    payload = page.payload
    assert payload["models"] == ["one", "two", "three"]
    assert [(row[0], row[3], row[4], len(row[6])) for row in payload["rows"]] == [
        (1, "right", 0, 3), (2, "mixed", 1, 3),
    ]  # fmt: skip
    assert [row[6][1][1] for row in payload["rows"]] == [["✓"], ["✓"]]
    assert "no room" in words  # the answer of the third model that failed
    assert set(payload["badges"]) == {"all", "mixed", "right", "wrong", "changed"}


def test_no_model_wins_against_an_unclear_one(tmp_path: Path) -> None:
    pairs = (*RESULT.pairs[:2], Pair(1, 2, comparison(0.5, 0.4, -0.4, 0.2)))
    words = plain(page_of(replace(RESULT, pairs=pairs), tmp_path).words)
    assert "better than all others" not in words.replace("No model is shown to be better than all others", "")


def test_a_pair_is_shown_as_in_a_report(tmp_path: Path) -> None:
    models = tuple(replace(one, scores=SCORES) for one in RESULT.models[:2])
    page = page_of(replace(RESULT, models=models, pairs=RESULT.pairs[:1]), tmp_path)
    assert page.words.count("two is better than one") == 2  # the title and the head
    assert "no change" in page.words  # the axis of the gain
    assert {row[3] for row in page.payload["rows"]} == {"right", "wrong"}


def test_prompts_of_different_templates_are_named(tmp_path: Path) -> None:
    assert "same prompts" in page_of(RESULT, tmp_path).words
    other = model("two", ["same", "a1"])
    answers = tuple(({**samples[0], "prompt": f"Please: {samples[0]['prompt']}"},) for samples in other.answers)
    models = (RESULT.models[0], replace(other, answers=answers), RESULT.models[2])
    assert "The prompts are those of one" in page_of(replace(RESULT, models=models), tmp_path).words


def test_rows_that_no_model_was_asked_about_are_left_out(tmp_path: Path) -> None:
    models = tuple(replace(one, answers=(one.answers[0], ())) for one in RESULT.models)
    assert [row[0] for row in page_of(replace(RESULT, models=models), tmp_path).payload["rows"]] == [1]


def test_hostile_names_and_answers_stay_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x>"
    models = (model(hostile, [hostile, "no"]), *RESULT.models[1:])
    page = page_of(replace(RESULT, models=models, run=hostile), tmp_path)
    assert "img" not in page.tags
    assert len(page.scripts) == 2
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.source
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
