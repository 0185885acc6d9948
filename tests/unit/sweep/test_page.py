"""Page and terminal have the same wording, draw the intervals that decide, and escape all text."""

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


def run_trials(sweep: Sweep, *right: int, threshold: float | None = None) -> SweepResult:
    for trial, number in zip(sweep.trials, right, strict=False):
        finish(sweep, trial, BASE, binary(number))
    return write_result(collect(sweep, threshold))


def test_the_sentence_is_on_the_page_and_in_the_terminal(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(promote={"model": "m", "min_gain": 0.1}), 14, 60, 75)
    page, text = found.page.read_text(encoding="utf-8"), sweep_text.as_text(found)
    for said in ("The smallest trial that clears the threshold is rank 8", "Bonferroni", "tunesmith promote"):
        assert said in page
        assert said in text
    assert "a gain in exact match above 10.0 points" in text
    assert "2,000 trained parameters" in text
    assert "cannot tell" in text


def test_no_trial_clears(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(), 10, 10, 10)
    assert sweep_text.headline(found) == "No trial was shown to clear the threshold"
    assert "The threshold is a gain in exact match above 0.0 points." in sweep_text.as_text(found)
    assert "None does." in found.page.read_text(encoding="utf-8")


def test_unfinished_is_said(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(), 70)
    assert (
        sweep_text.headline(found)
        == "The smallest trial that clears the threshold so far (2 of 3 trials to do) is rank 2"
    )
    assert "No trial has a score yet" in run_trials(make_sweep(name="none")).page.read_text(encoding="utf-8")


def test_a_score_threshold_is_worded_and_drawn_as_a_score(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(), 40, 60, 75, threshold=0.8)
    assert sweep_text.threshold_text(found) == "exact match above 80.0 %"
    assert "exact match, %" in str(draw_scores(found, "trained_parameters", 1000))


def test_every_judged_trial_is_drawn_with_its_interval_and_the_smallest_is_ringed(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(), 14, 60, 75)
    drawn = str(draw_scores(found, "trained_parameters", 1000))
    assert len(re.findall(r'class="gain-dot (clears|open|short)"', drawn)) == 3
    assert len(re.findall(r'class="whisker ', drawn)) == 3
    assert drawn.count('class="smallest"') == 1
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', drawn)
    assert [float(x) for x, _ in dots] == sorted(float(x) for x, _ in dots)  # more weights, further right
    assert float(dots[2][1]) < float(dots[1][1]) < float(dots[0][1])  # a higher gain, further up
    assert "nan" not in drawn


def test_measures_in_which_trials_do_not_differ_are_not_drawn(make_sweep: MakeSweep) -> None:
    found = run_trials(make_sweep(), 14, 60, 75)
    assert is_drawable(found, "seconds")
    assert not is_drawable(found, "tokens")
    assert not is_drawable(found, "train_rows")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000.0, 470.0, 380.0])
@pytest.mark.parametrize("sizes", [(1, 2), (1000, 9_000_000), (5, 5), (0.5, 0.6), (0, 10)])
def test_any_sizes_are_drawn_within_the_picture(
    make_sweep: MakeSweep, sizes: tuple[float, float], width: float
) -> None:
    sweep = make_sweep("tuning.rank=2,8")
    for trial, size in zip(sweep.trials, sizes, strict=True):
        finish(sweep, trial, BASE, binary(60), seconds=size)
    drawn = str(draw_scores(collect(sweep), "seconds", width))
    places = [float(x) for x in re.findall(r'cx="([-\d.]+)"', drawn)]
    assert all(40 < x < width - 20 for x in places)


def test_two_axes_are_joined_along_the_one_that_is_drawn(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8,32", "train.learning_rate=0.1,0.2")
    found = run_trials(sweep, *[40] * 6)
    assert str(draw_scores(found, "trained_parameters", 1000)).count('class="joined"') == 2


def test_hostile_text_stays_text(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(f"tuning.target=all-linear,['{HOSTILE}']")
    finish(sweep, sweep.trials[1], BASE, binary(70))
    write_json(failure_path(sweep.run(sweep.trials[0])), {"exit_code": 1, "reason": HOSTILE})
    found = write_result(collect(sweep))
    page, text = found.page.read_text(encoding="utf-8"), sweep_text.as_text(found)
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page + text
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert page.count("</style>") == 1
    assert "{{7*7}}" in page


def test_the_page_asks_the_network_for_nothing(make_sweep: MakeSweep) -> None:
    page = run_trials(make_sweep(), 14, 60, 75).page.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert "prefers-color-scheme: dark" in page
