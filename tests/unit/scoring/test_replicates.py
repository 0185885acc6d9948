"""The verdict on several training seeds: what its interval covers, by simulation, and what it reports."""

import math
from typing import Any

import numpy as np
import pytest
from tests.support.errors import raises
from tests.support.simulations import BY_SEED

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring import bootstrap
from tunesmith.scoring.replicates import mean_rows, replicated_verdict
from tunesmith.scoring.row_scores import VerdictSettings, compare
from tunesmith.scoring.verdict import paired_verdict


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample less often: the intervals are noisier than those that users get."""
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 500)
    monkeypatch.setattr(bootstrap, "_RESAMPLES_PER_TAIL", 0)


def scores(gains: list[float], rows: int = 60, noise: float = 0.05) -> tuple[list[float], dict[int, list[float]]]:
    """Return base scores, and those of one seed for each gain."""
    random = np.random.default_rng(1)
    base = random.random(rows) * 0.4
    of_rows = random.normal(0, noise, rows)
    return base.tolist(), {seed: (base + gain + of_rows).tolist() for seed, gain in enumerate(gains, 7)}


# --- what the interval covers ---------------------------------------------------------------------------------------


def coverage(name: str, rows: int, seeds: int, deviation: float, draws: int) -> tuple[float, float, float]:
    """Return how often the interval covers the gain, how often one seed's does, and how often equals are better."""
    gain = 0.05
    true = math.exp(2) - math.exp(2 - gain) if name == "perplexity" else gain
    found = np.zeros(3)
    for number in range(draws):
        key = [rows, seeds, number]
        several = replicated_verdict(
            **BY_SEED[name](gain)(np.random.default_rng(key), rows, seeds, deviation), min_gain=-9, seed=number
        )
        equal = replicated_verdict(**BY_SEED[name](0.0)(np.random.default_rng(key), rows, seeds, deviation))
        one = several.seeds[0]
        found += several.low <= true <= several.high, one.low <= true <= one.high, equal.verdict == "better"
    covers, one_covers, better = found / draws
    return float(covers), float(one_covers), float(better)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("name", "deviation"), [("graded", 0.05), ("binary", 0.15)])
def test_the_interval_covers_rows_and_seeds(name: str, deviation: float) -> None:
    covers, one_covers, better = coverage(name, 60, 3, deviation, 120)
    assert covers >= 0.92
    assert one_covers < 0.85  # an interval over rows does not cover training
    assert better <= 0.05


@pytest.mark.usefixtures("fast")
def test_without_an_effect_of_seeds_the_interval_is_hardly_wider() -> None:
    base, by_seed = scores([0.1, 0.1, 0.1])
    several, one = replicated_verdict(base, by_seed), paired_verdict(base, by_seed[7])
    assert (several.low, several.high) == pytest.approx((one.low, one.high))
    assert coverage("graded", 60, 3, 0.0, 60)[0] >= 0.9


# --- what it reports ------------------------------------------------------------------------------------------------


def test_the_gain_is_the_mean_over_seeds() -> None:
    base, by_seed = scores([0.10, 0.16, 0.04])
    found = replicated_verdict(base, by_seed)
    assert found.gain == pytest.approx(np.mean([seed.gain for seed in found.seeds]))
    assert [seed.seed for seed in found.seeds] == [7, 8, 9]
    assert found.own is found.seeds[0]
    single = paired_verdict(base, by_seed[7])
    assert (single.tuned, single.gain, single.low, single.high) == (
        found.seeds[0].tuned, found.seeds[0].gain, found.seeds[0].low, found.seeds[0].high,
    )  # fmt: skip


def test_seeds_that_differ_can_hide_a_gain_that_each_seed_shows() -> None:
    base, by_seed = scores([0.04, 0.10, 0.30])
    found = replicated_verdict(base, by_seed)
    assert all(seed.low > 0 for seed in found.seeds)
    assert found.verdict == "cannot_tell"
    assert (found.rows_needed, found.groups_needed) == (None, None)
    assert found.seeds_needed is not None
    assert 3 < found.seeds_needed < 30
    more = replicated_verdict(base, {number: by_seed[7 + number % 3] for number in range(3 * found.seeds_needed)})
    assert more.verdict == "better"


def test_more_rows_settle_what_the_rows_leave_open() -> None:
    random = np.random.default_rng(3)
    base = np.zeros(40)
    by_seed = {seed: random.normal(0, 0.5, 40) * 0.1 + random.normal(0.05, 0.4, 40) for seed in range(3)}
    by_seed = {seed: one - one.mean() + 0.05 for seed, one in by_seed.items()}  # the seeds are equal on average
    found = replicated_verdict(base, by_seed)
    assert (found.verdict, found.seeds_needed) == ("cannot_tell", None)
    assert found.rows_needed is not None
    copies = math.ceil(1.1 * found.rows_needed / 40)
    assert replicated_verdict(np.tile(base, copies), {s: np.tile(o, copies) for s, o in by_seed.items()}).verdict == (
        "better"
    )


@pytest.mark.parametrize("name", sorted(BY_SEED))
def test_neither_the_order_of_rows_nor_that_of_seeds_matters(name: str) -> None:
    drawn = BY_SEED[name](0.05)(np.random.default_rng(0), 40, 4, 0.05)
    order = np.random.default_rng(1).permutation(40)

    def moved(values: Any) -> Any:
        return np.asarray(values)[order].tolist()

    by_seed = {seed: moved(drawn["by_seed"][seed]) for seed in reversed(drawn["by_seed"])}
    rest = {key: moved(drawn[key]) for key in ("weights", "groups") if key in drawn}
    rest |= {"transform": drawn["transform"]} if "transform" in drawn else {}
    found = replicated_verdict(**drawn)
    other = replicated_verdict(moved(drawn["base"]), by_seed, **rest)
    assert (other.gain, other.low, other.high) == pytest.approx((found.gain, found.low, found.high), abs=1e-12)


def test_scores_outside_the_possible_range_are_not_claimed() -> None:
    found = replicated_verdict([0.0] * 30, {0: [1.0] * 30, 1: [0.0] * 30, 2: [1.0] * 30})
    assert found.low < 0
    assert found.high == 1


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_seeds_are_too_few(count: int) -> None:
    base, by_seed = scores([0.1] * count)
    with raises(RecipeError, "too-few-seeds"):
        replicated_verdict(base, by_seed)


# --- rows of scores.jsonl -------------------------------------------------------------------------------------------


def rows_of(values: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "group": "g", "rougeL": value, **more} for number, value in enumerate(values)]


def test_rows_are_averaged_over_seeds() -> None:
    likelihoods = [{"log_likelihood": -value, "tokens": 4.0, "correct": 1.0} for value in (2.0, 4.0, 6.0)]
    by_seed = [rows_of([value, 0.5], **line) for value, line in zip((0.1, 0.2, 0.6), likelihoods, strict=True)]
    first, second = mean_rows(by_seed)
    assert first == {
        "id": "r0", "group": "g", "tokens": 4.0, "rougeL": pytest.approx(0.3), "log_likelihood": -4.0, "correct": 1.0,
    }  # fmt: skip
    assert second["rougeL"] == 0.5


def test_a_row_that_failed_for_one_seed_is_left_out_for_all() -> None:
    base = rows_of([0.1] * 10)
    by_seed = {seed: rows_of([0.2 + seed / 100] * 10) for seed in range(3)}
    del by_seed[1][4]["rougeL"]
    by_seed[1][4]["failed"] = "memory"
    mean = mean_rows(list(by_seed.values()))
    assert mean[4] == {"id": "r4", "group": "g", "failed": "memory"}
    found = compare(
        "rougeL", base, mean, lower_is_better=False, settings=VerdictSettings(0.0, 0.95, 0), by_seed=by_seed
    )
    assert (found.rows, found.failed) == (9, 1)
    assert found.tuned == pytest.approx(0.21)


def test_lower_is_better_keeps_the_scores_of_seeds_as_they_are() -> None:
    by_seed = {seed: rows_of([0.2 + seed / 100] * 10) for seed in range(3)}
    found = compare(
        "rougeL", rows_of([0.4] * 10), mean_rows(list(by_seed.values())), lower_is_better=True,
        settings=VerdictSettings(0.0, 0.95, 0), by_seed=by_seed,
    )  # fmt: skip
    assert [seed.tuned for seed in found.seeds] == pytest.approx([0.2, 0.21, 0.22])
    assert [seed.gain for seed in found.seeds] == pytest.approx([0.2, 0.19, 0.18])
    assert found.tuned == pytest.approx(0.21)


def test_seeds_with_other_rows_are_refused() -> None:
    other = rows_of([0.1, 0.2])
    other[1]["id"] = "x"
    with raises(DataError, "unequal-lengths"):
        mean_rows([rows_of([0.1, 0.2]), other])
