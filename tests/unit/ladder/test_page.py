"""The page and the terminal: they say the same, they draw what was judged, and no text becomes markup."""

import re

import pytest
from tests.unit.ladder.conftest import HOSTILE, MakeLadder, binary, finish

from tunesmith.core.files import write_json
from tunesmith.ladder import words
from tunesmith.ladder.chart import against, drawable
from tunesmith.ladder.collect import Result, collect, failure_path
from tunesmith.ladder.page import write_result
from tunesmith.ladder.rungs import Ladder

BASE = binary(10)


def climbed(ladder: Ladder, *right: int, bar: float | None = None) -> Result:
    for rung, number in zip(ladder.rungs, right, strict=False):
        finish(ladder, rung, BASE, binary(number))
    return write_result(collect(ladder, bar))


def test_the_sentence_is_on_the_page_and_in_the_terminal(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(promote={"model": "m", "min_gain": 0.1}), 14, 60, 75)
    page, text = found.page.read_text(encoding="utf-8"), words.as_text(found)
    for said in ("The smallest rung that clears the bar is rank 8", "Bonferroni", "tunesmith promote"):
        assert said in page
        assert said in text
    assert "a gain in exact match above 10.0 points" in text
    assert "2,000 trained weights" in text
    assert "cannot tell" in text


def test_no_rung_clears(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(), 10, 10, 10)
    assert words.headline(found) == "No rung was shown to clear the bar"
    assert "The bar is a gain in exact match above 0.0 points." in words.as_text(found)
    assert "None does." in found.page.read_text(encoding="utf-8")


def test_unfinished_is_said(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(), 70)
    assert words.headline(found) == "The smallest rung that clears the bar so far (2 of 3 rungs to do) is rank 2"
    assert "No rung has a score yet" in climbed(make_ladder(name="none")).page.read_text(encoding="utf-8")


def test_a_score_bar_is_worded_and_drawn_as_a_score(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(), 40, 60, 75, bar=0.8)
    assert words.bar_words(found) == "exact match above 80.0 %"
    assert "exact match, %" in str(against(found, "trained_parameters", 1000))


def test_every_judged_rung_is_drawn_with_its_interval_and_the_smallest_is_ringed(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(), 14, 60, 75)
    drawn = str(against(found, "trained_parameters", 1000))
    assert len(re.findall(r'class="gain-dot (clears|open|short)"', drawn)) == 3
    assert len(re.findall(r'class="whisker ', drawn)) == 3
    assert drawn.count('class="smallest"') == 1
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', drawn)
    assert [float(x) for x, _ in dots] == sorted(float(x) for x, _ in dots)  # more weights, further right
    assert float(dots[2][1]) < float(dots[1][1]) < float(dots[0][1])  # a higher gain, further up
    assert "nan" not in drawn


def test_measures_in_which_rungs_do_not_differ_are_not_drawn(make_ladder: MakeLadder) -> None:
    found = climbed(make_ladder(), 14, 60, 75)
    assert drawable(found, "seconds")
    assert not drawable(found, "tokens")
    assert not drawable(found, "train_rows")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000.0, 470.0, 380.0])
@pytest.mark.parametrize("sizes", [(1, 2), (1000, 9_000_000), (5, 5), (0.5, 0.6), (0, 10)])
def test_any_sizes_are_drawn_within_the_picture(
    make_ladder: MakeLadder, sizes: tuple[float, float], width: float
) -> None:
    ladder = make_ladder("tuning.rank=2,8")
    for rung, size in zip(ladder.rungs, sizes, strict=True):
        finish(ladder, rung, BASE, binary(60), seconds=size)
    drawn = str(against(collect(ladder), "seconds", width))
    places = [float(x) for x in re.findall(r'cx="([-\d.]+)"', drawn)]
    assert all(40 < x < width - 20 for x in places)


def test_two_axes_are_joined_along_the_one_that_is_drawn(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8,32", "train.learning_rate=0.1,0.2")
    found = climbed(ladder, *[40] * 6)
    assert str(against(found, "trained_parameters", 1000)).count('class="joined"') == 2


def test_hostile_text_stays_text(make_ladder: MakeLadder) -> None:
    ladder = make_ladder(f"tuning.target=all-linear,['{HOSTILE}']")
    finish(ladder, ladder.rungs[1], BASE, binary(70))
    write_json(failure_path(ladder.run(ladder.rungs[0])), {"exit_code": 1, "reason": HOSTILE})
    found = write_result(collect(ladder))
    page, text = found.page.read_text(encoding="utf-8"), words.as_text(found)
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page + text
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert page.count("</style>") == 1
    assert "{{7*7}}" in page


def test_the_page_asks_the_network_for_nothing(make_ladder: MakeLadder) -> None:
    page = climbed(make_ladder(), 14, 60, 75).page.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "prefers-color-scheme: dark" in page
