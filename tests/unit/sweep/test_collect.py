"""Choosing the smallest trial: outcomes, intervals that hold together, and the order of trials."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.support.errors import raises
from tests.support.verdicts import comparison, verdict
from tests.unit.sweep.conftest import ROWS, MakeSweep, binary, finish, result_json

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import seal_folder, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.scoring.verdict import corrected_confidence, paired_verdict
from tunesmith.sweep import run as sweep_run
from tunesmith.sweep.axes import Axis
from tunesmith.sweep.collect import Estimate, TrialResult, collect, score_estimate, smallest
from tunesmith.sweep.page import write_result

BASE = binary(10)
PROMOTE = {"model": "m", "min_gain": 0.1}
RANKS, DATA = Axis("tuning.rank", ("1", "2")), Axis("data.train_rows", ("1", "2"))


def test_smallest_trial_that_clears_is_chosen_instead_of_the_best(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(promote=PROMOTE)
    for trial, right in zip(sweep.trials, (14, 60, 75), strict=True):
        finish(sweep, trial, BASE, binary(right))
    result = write_result(collect(sweep))

    assert [trial.outcome for trial in result.trials] == ["cannot tell", "clears", "clears"]
    assert result.smallest == result.trials[1]
    assert result.promote_command == f"tunesmith promote {sweep.path / '02-rank-8'}"
    content = result_json(sweep)
    assert content["smallest"] == 2
    assert content["threshold"] == {"quantity": "gain", "metric": "exact_match", "value": 0.1}
    assert content["correction"] == "Bonferroni over 3 trials"
    assert content["trials"][1]["measures"]["trained_parameters"] == 2000
    assert content["trials"][1]["measures"]["model_parameters"] == 50_000  # without the parameters of LoRA
    assert result.page.stat().st_size > 5_000


def test_threshold_on_the_score(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(promote=PROMOTE)
    for trial, right in zip(sweep.trials, (40, 66, 76), strict=True):
        finish(sweep, trial, BASE, binary(right))
    result = collect(sweep, 0.8)
    assert [trial.outcome for trial in result.trials] == ["falls short", "cannot tell", "clears"]
    assert result.trials[1].score is not None
    assert result.trials[1].score.value == pytest.approx(66 / ROWS)
    assert result.smallest == result.trials[2]
    lower = collect(sweep, 0.3)
    assert lower.smallest == lower.trials[0]
    assert collect(sweep, 0.99).smallest is None
    assert collect(sweep, 0.99).promote_command is None


def test_interval_of_a_score_equals_the_paired_interval(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[0], BASE, binary(60))
    trial = collect(sweep, 0.5).trials[0]
    each = corrected_confidence(0.95, 3)
    alone = paired_verdict([0.0] * ROWS, binary(60), confidence=each, min_gain=0.5)
    assert trial.score is not None
    assert (trial.score.low, trial.score.high) == (alone.low, alone.high)
    # Wilson's interval of a proportion, which is derived differently, is close.
    z, share = 2.394, 60 / ROWS
    middle, half = (
        (share + z * z / (2 * ROWS)) / (1 + z * z / ROWS),
        z / (1 + z * z / ROWS) * math.sqrt(share * (1 - share) / ROWS + z * z / (4 * ROWS**2)),
    )
    assert trial.score.low == pytest.approx(middle - half, abs=0.02)
    assert trial.score.high == pytest.approx(middle + half, abs=0.02)


def test_more_trials_make_the_intervals_wider(make_sweep: MakeSweep) -> None:
    few, many = make_sweep("tuning.rank=1,2"), make_sweep("tuning.rank=1,2,3,4,5,6,7,8", name="many")
    widths = []
    for sweep in (few, many):
        finish(sweep, sweep.trials[0], BASE, binary(40))
        gain = collect(sweep).trials[0].gain
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[1] > 1.1 * widths[0]


def test_failed_and_unfinished_trials_are_counted(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[1], BASE, binary(70))
    write_json(sweep.run(sweep.trials[0]).path / "logs" / "failure.json", {"exit_code": 7, "reason": "step 3: nan"})
    result = collect(sweep)
    assert [trial.state for trial in result.trials] == ["failed", "done", "to do"]
    assert result.trials[0].failure == {"exit_code": 7, "reason": "step 3: nan"}
    assert result.smallest == result.trials[1]
    assert result.each_confidence == pytest.approx(1 - 0.05 / 3)  # all trials count, finished or not


def test_trial_finished_after_a_failure_is_done(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    reason = sweep.run(sweep.trials[0]).path / "logs" / "failure.json"
    write_json(reason, {"exit_code": 5, "reason": "the disk is full"})
    finish(sweep, sweep.trials[0], BASE, binary(70))
    assert collect(sweep).trials[0].state == "done"
    write_json(reason, {"exit_code": 2, "reason": "the inputs have changed"})
    assert collect(sweep).trials[0].state == "failed"


def test_result_before_any_trial_is_done(make_sweep: MakeSweep) -> None:
    result = write_result(collect(make_sweep()))
    assert result.smallest is None
    assert {trial.state for trial in result.trials} == {"to do"}


def test_trial_that_breaks_a_guard_does_not_clear(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[0], BASE, binary(70), guard_passes=False)
    finish(sweep, sweep.trials[2], BASE, binary(70), guard_passes=True)
    result = collect(sweep)
    assert result.trials[0].outcome == "breaks a guard"
    assert result.smallest == result.trials[2]


def test_perplexity_clears_a_threshold_from_above(make_sweep: MakeSweep) -> None:
    settings = {"metrics": ["perplexity"], "primary": "perplexity"}
    sweep = make_sweep(evaluate=settings)
    generator = np.random.default_rng(0)
    for trial, nll in zip(sweep.trials, (3.0, 2.0, 1.9), strict=True):
        finish(sweep, trial, BASE, BASE)
        for name, mean in (("base", 3.1), ("tuned", nll)):
            noise = 0.1 * generator.standard_normal(ROWS)
            values = [
                {
                    "id": f"row-{row}",
                    "group": f"{row}",
                    "tokens": 10.0,
                    "log_likelihood": -10 * (mean + float(noise[row])),
                    "correct": 1.0,
                }
                for row in range(ROWS)
            ]
            write_jsonl(sweep.run(trial).evaluation(name) / "scores.jsonl", values)
        seal_folder(sweep.run(trial).stage("evaluate"), stage="evaluate", inputs={})
    result = collect(sweep, 10.0)
    assert [trial.outcome for trial in result.trials] == ["falls short", "clears", "clears"]
    score = result.trials[1].score
    assert score is not None
    assert score.low < score.value < score.high < 10
    assert score.value == pytest.approx(math.exp(2.0), rel=0.05)
    assert result.trials[1].base == pytest.approx(math.exp(3.1), rel=0.05)
    by_gain = collect(sweep)
    assert by_gain.smallest == by_gain.trials[0]  # better than its base, though above the threshold on the score


def test_different_test_rows_are_noted(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=1,2")
    finish(sweep, sweep.trials[0], BASE, binary(70))
    finish(sweep, sweep.trials[1], BASE[:60], binary(50, 60))
    assert any("different test rows" in note for note in collect(sweep).notes)
    assert collect(sweep).rows == 60


def test_gains_over_different_bases_are_noted(make_sweep: MakeSweep, tokenizer_folder: Path, tiny: Path) -> None:
    sweep = make_sweep(f"model.base={tokenizer_folder},{tiny}")
    assert any("weak base" in note for note in collect(sweep).notes)
    assert not any("weak base" in note for note in collect(sweep, 0.5).notes)


def trial_result(number: int, rank: float, rows: float, score: float, outcome: str = "clears") -> TrialResult:
    estimate = Estimate(score, score - 0.1, score + 0.1)
    measures = {"trained_parameters": rank, "train_rows": rows}
    return TrialResult(
        number, str(number), "", (), "done", None, {}, measures, 0.0, estimate, estimate, outcome  # type: ignore[arg-type]
    )  # fmt: skip


def test_trials_are_ordered_by_the_first_axis_then_the_second_then_the_score() -> None:
    first, second = trial_result(1, 8, 100, 0.9), trial_result(2, 2, 400, 0.8)
    assert smallest([first, second], [RANKS, DATA], higher_is_better=True) == second
    assert smallest([first, second], [DATA, RANKS], higher_is_better=True) == first
    third = trial_result(3, 2, 100, 0.7)
    assert smallest([first, second, third], [RANKS, DATA], higher_is_better=True) == third
    fourth = trial_result(4, 2, 100, 0.75)
    assert smallest([third, fourth], [RANKS, DATA], higher_is_better=True) == fourth
    assert smallest([third, fourth], [RANKS, DATA], higher_is_better=False) == third
    assert smallest([trial_result(5, 1, 1, 0.9, "cannot tell"), fourth], [RANKS], higher_is_better=True) == fourth
    assert smallest([], [RANKS], higher_is_better=True) is None


def test_bonferroni_correction_rejects_a_lucky_trial(make_sweep: MakeSweep) -> None:
    """A trial that clears the threshold alone does not clear it as one of ten."""
    alone = paired_verdict(BASE, binary(22), confidence=0.95)
    assert alone.verdict == "better"
    sweep = make_sweep("tuning.rank=1,2,3,4,5,6,7,8,9,10")
    for trial in sweep.trials:
        finish(sweep, trial, BASE, binary(22) if trial.number == 4 else BASE)
    result = collect(sweep)
    assert result.trials[3].outcome == "cannot tell"
    assert result.smallest is None


def test_interval_of_a_score_is_cut_at_its_minimum() -> None:
    comparison_with_zero = paired_verdict([0.0] * 40, [1.0, -1.0] * 20)
    assert comparison_with_zero.low < 0
    assert score_estimate(comparison_with_zero, 0.0, lower=False, least=0.0).low == 0.0
    assert score_estimate(comparison_with_zero, 0.0, lower=False, least=-math.inf).low == comparison_with_zero.low
    assert score_estimate(comparison_with_zero, 0.0, lower=True, least=-math.inf).low == -comparison_with_zero.high


def test_direction_of_the_metric_is_that_of_the_verdicts(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    assert collect(sweep).higher_is_better
    finish(sweep, sweep.trials[0], BASE, binary(60))
    lower = verdict(comparison("exact_match", higher_is_better=False))
    write_json(sweep.run(sweep.trials[0]).verdict, lower.to_json())
    assert not collect(sweep).higher_is_better


def test_threshold_in_points_is_refused_before_a_trial_runs(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    for threshold in (60.0, 1.0, -0.1):
        with raises(RecipeError, "unreachable-threshold", where="--threshold"):
            sweep_run.run_sweep(sweep.path, threshold=threshold)
    assert not any(sweep.run(trial).manifest("prepare") for trial in sweep.trials)
