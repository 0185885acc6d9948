"""Which trial is named: what each shows, in intervals that hold for all together, and what `smallest` means."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.support.verdicts import comparison, verdict
from tests.unit.sweep.conftest import ROWS, MakeSweep, binary, finish, result_json

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import seal_folder, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.scoring.verdict import paired_verdict
from tunesmith.sweep import run as sweep_run
from tunesmith.sweep.axes import Axis, corrected_confidence
from tunesmith.sweep.collect import TrialResult, _score, collect, smallest
from tunesmith.sweep.page import write_result

BASE = binary(10)
PROMOTE = {"model": "m", "min_gain": 0.1}
RANKS, DATA = Axis("tuning.rank", ("1", "2")), Axis("data.train_rows", ("1", "2"))


def test_the_smallest_that_clears_is_named_and_not_the_best(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(promote=PROMOTE)
    for trial, right in zip(sweep.trials, (14, 60, 75), strict=True):
        finish(sweep, trial, BASE, binary(right))
    found = write_result(collect(sweep))

    assert [trial.outcome for trial in found.trials] == ["cannot tell", "clears", "clears"]
    assert found.smallest == found.trials[1]
    assert found.promote_command == f"tunesmith promote {sweep.path / '02-rank-8'}"
    told = result_json(sweep)
    assert told["smallest"] == 2
    assert told["threshold"] == {"quantity": "gain", "metric": "exact_match", "value": 0.1}
    assert told["correction"] == "Bonferroni over 3 trials"
    assert told["trials"][1]["measures"]["trained_parameters"] == 2000
    assert told["trials"][1]["measures"]["model_parameters"] == 50_000  # without what LoRA added
    assert found.page.stat().st_size > 5_000


def test_a_threshold_on_the_score(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(promote=PROMOTE)
    for trial, right in zip(sweep.trials, (40, 66, 76), strict=True):
        finish(sweep, trial, BASE, binary(right))
    found = collect(sweep, 0.8)
    assert [trial.outcome for trial in found.trials] == ["falls short", "cannot tell", "clears"]
    assert found.trials[1].score is not None
    assert found.trials[1].score.value == pytest.approx(66 / ROWS)
    assert found.smallest == found.trials[2]
    lower = collect(sweep, 0.3)
    assert lower.smallest == lower.trials[0]
    assert collect(sweep, 0.99).smallest is None
    assert collect(sweep, 0.99).promote_command is None


def test_the_interval_of_a_score_is_that_of_its_rows(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[0], BASE, binary(60))
    trial = collect(sweep, 0.5).trials[0]
    each = corrected_confidence(0.95, 3)
    alone = paired_verdict([0.0] * ROWS, binary(60), confidence=each, min_gain=0.5)
    assert trial.score is not None
    assert (trial.score.low, trial.score.high) == (alone.low, alone.high)
    # Wilson's interval of a share, which is derived otherwise, is close.
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


def test_failed_and_unfinished_trials_are_counted_and_told(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[1], BASE, binary(70))
    write_json(sweep.run(sweep.trials[0]).path / "logs" / "failure.json", {"exit_code": 7, "reason": "step 3: nan"})
    found = collect(sweep)
    assert [trial.state for trial in found.trials] == ["failed", "done", "to do"]
    assert found.trials[0].failure == {"exit_code": 7, "reason": "step 3: nan"}
    assert found.smallest == found.trials[1]
    assert found.each_confidence == pytest.approx(1 - 0.05 / 3)  # what was meant to run counts, not what came out


def test_a_trial_that_was_finished_by_hand_after_it_failed_is_done(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    reason = sweep.run(sweep.trials[0]).path / "logs" / "failure.json"
    write_json(reason, {"exit_code": 5, "reason": "the disk is full"})
    finish(sweep, sweep.trials[0], BASE, binary(70))
    assert collect(sweep).trials[0].state == "done"
    write_json(reason, {"exit_code": 2, "reason": "prepare was done with other inputs"})
    assert collect(sweep).trials[0].state == "failed"


def test_nothing_done_yet(make_sweep: MakeSweep) -> None:
    found = write_result(collect(make_sweep()))
    assert found.smallest is None
    assert {trial.state for trial in found.trials} == {"to do"}


def test_a_broken_guard_does_not_clear(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[0], BASE, binary(70), guard_passes=False)
    finish(sweep, sweep.trials[2], BASE, binary(70), guard_passes=True)
    found = collect(sweep)
    assert found.trials[0].outcome == "breaks a guard"
    assert found.smallest == found.trials[2]


def test_perplexity_clears_from_above(make_sweep: MakeSweep) -> None:
    settings = {"metrics": ["perplexity"], "primary": "perplexity"}
    sweep = make_sweep(evaluate=settings)
    chance = np.random.default_rng(0)
    for trial, nll in zip(sweep.trials, (3.0, 2.0, 1.9), strict=True):
        finish(sweep, trial, BASE, BASE)
        for name, mean in (("base", 3.1), ("tuned", nll)):
            noise = 0.1 * chance.standard_normal(ROWS)
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
    found = collect(sweep, 10.0)
    assert [trial.outcome for trial in found.trials] == ["falls short", "clears", "clears"]
    score = found.trials[1].score
    assert score is not None
    assert score.low < score.value < score.high < 10
    assert score.value == pytest.approx(math.exp(2.0), rel=0.05)
    assert found.trials[1].base == pytest.approx(math.exp(3.1), rel=0.05)
    by_gain = collect(sweep)
    assert by_gain.smallest == by_gain.trials[0]  # better than its base, though not as good as was asked for above


def test_other_questions_are_noted(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=1,2")
    finish(sweep, sweep.trials[0], BASE, binary(70))
    finish(sweep, sweep.trials[1], BASE[:60], binary(50, 60))
    assert any("different test rows" in note for note in collect(sweep).notes)
    assert collect(sweep).rows == 60


def test_gains_over_several_bases_are_noted(make_sweep: MakeSweep, tokenizer_folder: Path, tiny: Path) -> None:
    sweep = make_sweep(f"model.base={tokenizer_folder},{tiny}")
    assert any("weak base" in note for note in collect(sweep).notes)
    assert not any("weak base" in note for note in collect(sweep, 0.5).notes)


def trial(number: int, rank: float, rows: float, score: float, outcome: str = "clears") -> TrialResult:
    from tunesmith.sweep.collect import Estimate

    estimate = Estimate(score, score - 0.1, score + 0.1)
    measures = {"trained_parameters": rank, "train_rows": rows}
    return TrialResult(
        number, str(number), "", (), "done", None, {}, measures, 0.0, estimate, estimate, outcome  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_first_axis_decides_then_the_second_then_the_score() -> None:
    one, two = trial(1, 8, 100, 0.9), trial(2, 2, 400, 0.8)
    assert smallest([one, two], [RANKS, DATA], higher_is_better=True) == two
    assert smallest([one, two], [DATA, RANKS], higher_is_better=True) == one
    three = trial(3, 2, 100, 0.7)
    assert smallest([one, two, three], [RANKS, DATA], higher_is_better=True) == three
    four = trial(4, 2, 100, 0.75)
    assert smallest([three, four], [RANKS, DATA], higher_is_better=True) == four
    assert smallest([three, four], [RANKS, DATA], higher_is_better=False) == three
    assert smallest([trial(5, 1, 1, 0.9, "cannot tell"), four], [RANKS], higher_is_better=True) == four
    assert smallest([], [RANKS], higher_is_better=True) is None


def test_a_lucky_one_of_many_is_not_named(make_sweep: MakeSweep) -> None:
    """What clears the threshold alone does not clear it as one of ten: that is what the correction is for."""
    alone = paired_verdict(BASE, binary(22), confidence=0.95)
    assert alone.verdict == "better"
    sweep = make_sweep("tuning.rank=1,2,3,4,5,6,7,8,9,10")
    for trial in sweep.trials:
        finish(sweep, trial, BASE, binary(22) if trial.number == 4 else BASE)
    found = collect(sweep)
    assert found.trials[3].outcome == "cannot tell"
    assert found.smallest is None


def test_only_scores_that_cannot_fall_below_zero_are_held_above_it() -> None:
    found = paired_verdict([0.0] * 40, [1.0, -1.0] * 20)
    assert found.low < 0
    assert _score(found, 0.0, lower=False, least=0.0).low == 0.0
    assert _score(found, 0.0, lower=False, least=-math.inf).low == found.low
    assert _score(found, 0.0, lower=True, least=-math.inf).low == -found.high


def test_which_way_is_better_is_what_the_verdicts_say(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    assert collect(sweep).higher_is_better
    finish(sweep, sweep.trials[0], BASE, binary(60))
    lower = verdict(comparison("exact_match", higher_is_better=False))
    write_json(sweep.run(sweep.trials[0]).verdict, lower.to_json())
    assert not collect(sweep).higher_is_better


def test_a_threshold_in_points_is_refused_before_a_trial_is_run(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    for threshold in (60.0, 1.0, -0.1):
        with pytest.raises(RecipeError) as caught:
            sweep_run.run_sweep(sweep.path, threshold=threshold)
        assert caught.value.where == "--threshold"
    assert not any(sweep.run(trial).manifest("prepare") for trial in sweep.trials)
