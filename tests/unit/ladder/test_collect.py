"""Which rung is named: what each shows, in intervals that hold for all together, and what `smallest` means."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.unit.ladder.conftest import ROWS, MakeLadder, binary, finish, result_json

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import seal_folder, write_json, write_jsonl
from tunesmith.ladder import climb
from tunesmith.ladder.collect import Outcome, _score, collect, smallest
from tunesmith.ladder.page import write_result
from tunesmith.ladder.rungs import Axis, correction
from tunesmith.scoring.verdict import paired_verdict

BASE = binary(10)
PROMOTE = {"model": "m", "min_gain": 0.1}
RANKS, DATA = Axis("tuning.rank", ("1", "2")), Axis("data.train_rows", ("1", "2"))


def test_the_smallest_that_clears_is_named_and_not_the_best(make_ladder: MakeLadder) -> None:
    ladder = make_ladder(promote=PROMOTE)
    for rung, right in zip(ladder.rungs, (14, 60, 75), strict=True):
        finish(ladder, rung, BASE, binary(right))
    found = write_result(collect(ladder))

    assert [outcome.standing for outcome in found.outcomes] == ["cannot tell", "clears", "clears"]
    assert found.smallest == found.outcomes[1]
    assert found.promote_command == f"tunesmith promote {ladder.path / '02-rank-8'}"
    told = result_json(ladder)
    assert told["smallest"] == 2
    assert told["bar"] == {"on": "gain", "metric": "exact_match", "value": 0.1}
    assert told["correction"] == "Bonferroni over 3 rungs"
    assert told["rungs"][1]["measures"]["trained_parameters"] == 2000
    assert told["rungs"][1]["measures"]["model_parameters"] == 50_000  # without what LoRA added
    assert found.page.stat().st_size > 5_000


def test_a_bar_on_the_score(make_ladder: MakeLadder) -> None:
    ladder = make_ladder(promote=PROMOTE)
    for rung, right in zip(ladder.rungs, (40, 66, 76), strict=True):
        finish(ladder, rung, BASE, binary(right))
    found = collect(ladder, 0.8)
    assert [outcome.standing for outcome in found.outcomes] == ["falls short", "cannot tell", "clears"]
    assert found.outcomes[1].score is not None
    assert found.outcomes[1].score.value == pytest.approx(66 / ROWS)
    assert found.smallest == found.outcomes[2]
    lower = collect(ladder, 0.3)
    assert lower.smallest == lower.outcomes[0]
    assert collect(ladder, 0.99).smallest is None
    assert collect(ladder, 0.99).promote_command is None


def test_the_interval_of_a_score_is_that_of_its_rows(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    finish(ladder, ladder.rungs[0], BASE, binary(60))
    outcome = collect(ladder, 0.5).outcomes[0]
    each = correction(0.95, 3)
    alone = paired_verdict([0.0] * ROWS, binary(60), confidence=each, min_gain=0.5)
    assert outcome.score is not None
    assert (outcome.score.low, outcome.score.high) == (alone.low, alone.high)
    # Wilson's interval of a share, which is derived otherwise, is close.
    z, share = 2.394, 60 / ROWS
    middle, half = (
        (share + z * z / (2 * ROWS)) / (1 + z * z / ROWS),
        z / (1 + z * z / ROWS) * math.sqrt(share * (1 - share) / ROWS + z * z / (4 * ROWS**2)),
    )
    assert outcome.score.low == pytest.approx(middle - half, abs=0.02)
    assert outcome.score.high == pytest.approx(middle + half, abs=0.02)


def test_more_rungs_make_the_intervals_wider(make_ladder: MakeLadder) -> None:
    few, many = make_ladder("tuning.rank=1,2"), make_ladder("tuning.rank=1,2,3,4,5,6,7,8", name="many")
    widths = []
    for ladder in (few, many):
        finish(ladder, ladder.rungs[0], BASE, binary(40))
        gain = collect(ladder).outcomes[0].gain
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[1] > 1.1 * widths[0]


def test_failed_and_unfinished_rungs_are_counted_and_told(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    finish(ladder, ladder.rungs[1], BASE, binary(70))
    write_json(ladder.run(ladder.rungs[0]).path / "logs" / "failure.json", {"exit_code": 7, "reason": "step 3: nan"})
    found = collect(ladder)
    assert [outcome.state for outcome in found.outcomes] == ["failed", "done", "to do"]
    assert found.outcomes[0].failure == {"exit_code": 7, "reason": "step 3: nan"}
    assert found.smallest == found.outcomes[1]
    assert found.each_confidence == pytest.approx(1 - 0.05 / 3)  # what was meant to run counts, not what came out


def test_a_rung_that_was_finished_by_hand_after_it_failed_is_done(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    reason = ladder.run(ladder.rungs[0]).path / "logs" / "failure.json"
    write_json(reason, {"exit_code": 5, "reason": "the disk is full"})
    finish(ladder, ladder.rungs[0], BASE, binary(70))
    assert collect(ladder).outcomes[0].state == "done"
    write_json(reason, {"exit_code": 2, "reason": "prepare was done with other inputs"})
    assert collect(ladder).outcomes[0].state == "failed"


def test_nothing_done_yet(make_ladder: MakeLadder) -> None:
    found = write_result(collect(make_ladder()))
    assert found.smallest is None
    assert {outcome.state for outcome in found.outcomes} == {"to do"}


def test_a_broken_guard_does_not_clear(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    finish(ladder, ladder.rungs[0], BASE, binary(70), guards=[{"passed": True}, {"passed": False}])
    finish(ladder, ladder.rungs[2], BASE, binary(70), guards=[{"passed": True}])
    found = collect(ladder)
    assert found.outcomes[0].standing == "breaks a guard"
    assert found.smallest == found.outcomes[2]


def test_perplexity_clears_from_above(make_ladder: MakeLadder) -> None:
    settings = {"metrics": ["perplexity"], "primary": "perplexity"}
    ladder = make_ladder(evaluate=settings)
    chance = np.random.default_rng(0)
    for rung, nll in zip(ladder.rungs, (3.0, 2.0, 1.9), strict=True):
        finish(ladder, rung, BASE, BASE)
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
            write_jsonl(ladder.run(rung).subject(name) / "scores.jsonl", values)
        seal_folder(ladder.run(rung).stage("evaluate"), stage="evaluate", inputs={})
    found = collect(ladder, 10.0)
    assert [outcome.standing for outcome in found.outcomes] == ["falls short", "clears", "clears"]
    score = found.outcomes[1].score
    assert score is not None
    assert score.low < score.value < score.high < 10
    assert score.value == pytest.approx(math.exp(2.0), rel=0.05)
    assert found.outcomes[1].base == pytest.approx(math.exp(3.1), rel=0.05)
    by_gain = collect(ladder)
    assert by_gain.smallest == by_gain.outcomes[0]  # better than its base, though not as good as was asked for above


def test_other_questions_are_noted(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("seed=1,2")
    finish(ladder, ladder.rungs[0], BASE, binary(70))
    finish(ladder, ladder.rungs[1], BASE[:60], binary(50, 60))
    assert any("did not answer the same rows" in note for note in collect(ladder).notes)
    assert collect(ladder).rows == 60


def test_gains_over_several_bases_are_noted(make_ladder: MakeLadder, tokenizer_folder: Path, tiny: Path) -> None:
    ladder = make_ladder(f"model.base={tokenizer_folder},{tiny}")
    assert any("gains over itself" in note for note in collect(ladder).notes)
    assert not any("gains over itself" in note for note in collect(ladder, 0.5).notes)


def outcome(number: int, rank: float, rows: float, score: float, standing: str = "clears") -> Outcome:
    from tunesmith.ladder.collect import Estimate

    estimate = Estimate(score, score - 0.1, score + 0.1)
    measures = {"trained_parameters": rank, "train_rows": rows}
    return Outcome(
        number, str(number), "", (), "done", None, {}, measures, 0.0, estimate, estimate, standing  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_first_axis_decides_then_the_second_then_the_score() -> None:
    one, two = outcome(1, 8, 100, 0.9), outcome(2, 2, 400, 0.8)
    assert smallest([one, two], [RANKS, DATA], higher_is_better=True) == two
    assert smallest([one, two], [DATA, RANKS], higher_is_better=True) == one
    three = outcome(3, 2, 100, 0.7)
    assert smallest([one, two, three], [RANKS, DATA], higher_is_better=True) == three
    four = outcome(4, 2, 100, 0.75)
    assert smallest([three, four], [RANKS, DATA], higher_is_better=True) == four
    assert smallest([three, four], [RANKS, DATA], higher_is_better=False) == three
    assert smallest([outcome(5, 1, 1, 0.9, "cannot tell"), four], [RANKS], higher_is_better=True) == four
    assert smallest([], [RANKS], higher_is_better=True) is None


def test_a_lucky_one_of_many_is_not_named(make_ladder: MakeLadder) -> None:
    """What clears the bar alone does not clear it as one of ten: that is what the correction is for."""
    alone = paired_verdict(BASE, binary(22), confidence=0.95)
    assert alone.verdict == "better"
    ladder = make_ladder("tuning.rank=1,2,3,4,5,6,7,8,9,10")
    for rung in ladder.rungs:
        finish(ladder, rung, BASE, binary(22) if rung.number == 4 else BASE)
    found = collect(ladder)
    assert found.outcomes[3].standing == "cannot tell"
    assert found.smallest is None


def test_only_scores_that_cannot_fall_below_zero_are_held_above_it() -> None:
    found = paired_verdict([0.0] * 40, [1.0, -1.0] * 20)
    assert found.low < 0
    assert _score(found, 0.0, lower=False, least=0.0).low == 0.0
    assert _score(found, 0.0, lower=False, least=-math.inf).low == found.low
    assert _score(found, 0.0, lower=True, least=-math.inf).low == -found.high


def test_which_way_is_better_is_what_the_verdicts_say(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    assert collect(ladder).higher_is_better
    finish(ladder, ladder.rungs[0], BASE, binary(60))
    verdict = ladder.run(ladder.rungs[0]).verdict
    write_json(verdict, {"guards": [], "metrics": {"exact_match": {"higher_is_better": False}}})
    assert not collect(ladder).higher_is_better


def test_a_bar_in_points_is_refused_before_a_rung_is_run(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    for bar in (60.0, 1.0, -0.1):
        with pytest.raises(RecipeError) as caught:
            climb.run_ladder(ladder.path, bar=bar)
        assert caught.value.where == "--bar"
    assert not any(ladder.run(rung).manifest("prepare") for rung in ladder.rungs)
