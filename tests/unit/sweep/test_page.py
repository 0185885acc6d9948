"""The page and the terminal share their wording; the page draws the intervals and escapes all text."""

import re

import pytest
from tests.unit.sweep.conftest import HOSTILE, MakeSweep, binary, finish

from tunesmith.core.files import write_json
from tunesmith.sweep import text as sweep_text
from tunesmith.sweep.axes import Sweep
from tunesmith.sweep.chart import draw_scores, is_drawable
from tunesmith.sweep.collect import SweepResult, collect, failure_path
from tunesmith.sweep.page import write_result

BASE = binary(10)


def finish_trials(sweep: Sweep, *right: int, threshold: float | None = None) -> SweepResult:
    """Finish each trial with a number of right answers, and write the result."""
    for trial, number in zip(sweep.trials, right, strict=False):
        finish(sweep, trial, BASE, binary(number))
    return write_result(collect(sweep, threshold))


def test_page_and_terminal_have_the_same_sentences(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(promote={"model": "m", "min_gain": 0.1}), 14, 60, 75)
    page, text = result.page.read_text(encoding="utf-8"), sweep_text.as_text(result)
    for sentence in ("The smallest trial that clears the threshold is rank 8", "Bonferroni", "tunesmith promote"):
        assert sentence in page
        assert sentence in text
    assert "a gain in exact match above 10.0 points" in text
    assert "2,000 trained parameters" in text
    assert "cannot tell" in text


def test_headline_if_no_trial_clears(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(), 10, 10, 10)
    assert sweep_text.headline(result) == "No trial was shown to clear the threshold"
    assert "The threshold is a gain in exact match above 0.0 points." in sweep_text.as_text(result)
    assert "None does." in result.page.read_text(encoding="utf-8")


def test_headline_of_an_unfinished_sweep(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(), 70)
    assert (
        sweep_text.headline(result)
        == "The smallest trial that clears the threshold so far (2 of 3 trials to do) is rank 2"
    )
    assert "No trial has a score yet" in finish_trials(make_sweep(name="none")).page.read_text(encoding="utf-8")


def test_threshold_on_the_score_is_worded_and_drawn_as_a_score(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(), 40, 60, 75, threshold=0.8)
    assert sweep_text.threshold_text(result) == "exact match above 80.0 %"
    assert "exact match, %" in str(draw_scores(result, "trained_parameters", 1000))


def test_each_trial_is_drawn_with_its_interval_and_the_smallest_has_a_ring(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(), 14, 60, 75)
    drawn = str(draw_scores(result, "trained_parameters", 1000))
    assert len(re.findall(r'class="gain-dot (clears|open|short)"', drawn)) == 3
    assert len(re.findall(r'class="whisker ', drawn)) == 3
    assert drawn.count('class="smallest"') == 1
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', drawn)
    assert [float(x) for x, _ in dots] == sorted(float(x) for x, _ in dots)  # more parameters, further right
    assert float(dots[2][1]) < float(dots[1][1]) < float(dots[0][1])  # higher gain, further up
    assert "nan" not in drawn


def test_measure_that_is_equal_in_all_trials_is_not_drawn(make_sweep: MakeSweep) -> None:
    result = finish_trials(make_sweep(), 14, 60, 75)
    assert is_drawable(result, "seconds")
    assert not is_drawable(result, "tokens")
    assert not is_drawable(result, "train_rows")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000.0, 470.0, 380.0])
@pytest.mark.parametrize("sizes", [(1, 2), (1000, 9_000_000), (5, 5), (0.5, 0.6), (0, 10)])
def test_dots_are_within_the_picture(make_sweep: MakeSweep, sizes: tuple[float, float], width: float) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    for trial, size in zip(sweep.trials, sizes, strict=True):
        finish(sweep, trial, BASE, binary(60), seconds=size)
    drawn = str(draw_scores(collect(sweep), "seconds", width))
    xs = [float(x) for x in re.findall(r'cx="([-\d.]+)"', drawn)]
    assert all(40 < x < width - 20 for x in xs)


def test_lines_join_trials_along_the_drawn_axis(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8,32", "train.learning_rate=0.1,0.2")
    result = finish_trials(sweep, *[40] * 6)
    assert str(draw_scores(result, "trained_parameters", 1000)).count('class="joined"') == 2


def test_hostile_text_is_escaped(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(f"tuning.target=all-linear,['{HOSTILE}']")
    finish(sweep, sweep.trials[1], BASE, binary(70))
    write_json(failure_path(sweep.run(sweep.trials[0])), {"exit_code": 1, "reason": HOSTILE})
    result = write_result(collect(sweep))
    page, text = result.page.read_text(encoding="utf-8"), sweep_text.as_text(result)
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page + text
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert page.count("</style>") == 1
    assert "{{7*7}}" in page


def test_page_loads_nothing_from_the_network(make_sweep: MakeSweep) -> None:
    page = finish_trials(make_sweep(), 14, 60, 75).page.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "prefers-color-scheme: dark" in page
