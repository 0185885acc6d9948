"""Comparisons of two JSONL files of any systems: pairing of rows, groups, failed rows and directions."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.unit.scoring.conftest import Row, Write

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.verdict import Comparison
from tunesmith.scoring.metrics import higher_is_better
from tunesmith.scoring.row_scores import VerdictSettings
from tunesmith.scoring.standalone import FileVerdict, compare_files, verdict_text
from tunesmith.scoring.verdict import paired_verdict


@pytest.fixture
def compared(write: Write) -> Callable[..., FileVerdict]:
    """Write the rows of two systems and compare the files."""

    def compare(
        base: list[Row] | str,
        tuned: list[Row] | str,
        metric: str | None = None,
        higher_is_better: bool | None = None,
        **settings: Any,
    ) -> FileVerdict:
        given = VerdictSettings(**{"min_gain": 0.0, "confidence": 0.95, "seed": 0, **settings})
        files = write(base, "base.jsonl"), write(tuned, "tuned.jsonl")
        return compare_files(*files, metric, given, higher_is_better=higher_is_better)

    return compare


@pytest.fixture
def judged(compared: Callable[..., FileVerdict]) -> Callable[..., Comparison]:
    """Write the rows of two systems and return their comparison."""
    return lambda *rows, **settings: compared(*rows, **settings).comparison


def scored(values: list[float], **more: list[Any]) -> list[Row]:
    return [{"rougeL": value} | {key: column[i] for key, column in more.items()} for i, value in enumerate(values)]


BASE = [0.1, 0.5, 0.3, 0.2, 0.9, 0.4, 0.35, 0.15, 0.25, 0.6]
TUNED = [0.4, 0.6, 0.2, 0.5, 0.95, 0.9, 0.75, 0.35, 0.75, 0.8]


def test_rows_are_paired_by_order(judged: Callable[..., Comparison]) -> None:
    result = judged(scored(BASE), scored(TUNED))
    expected = paired_verdict(BASE, TUNED)
    assert (result.metric, result.verdict) == ("rougeL", expected.verdict)
    assert (result.gain, result.low, result.high) == (expected.gain, expected.low, expected.high)
    assert (result.base, result.tuned, result.rows) == (expected.base, expected.tuned, 10)


def test_rows_are_paired_by_id_if_they_have_one(judged: Callable[..., Comparison]) -> None:
    ids = [f"row-{i}" for i in range(10)]
    tuned = list(reversed(scored(TUNED, id=ids)))
    result = judged(scored(BASE, id=ids), tuned)
    assert result == judged(scored(BASE), scored(TUNED))
    assert result != judged(scored(BASE), [{"rougeL": row["rougeL"]} for row in tuned])
    assert (result.improved, result.worsened) == (9, 1)


@pytest.mark.parametrize("ids", [list(range(10)), [None, True, 1, 0, False, "1", 2.5, "", "None", -1]])
def test_ids_of_any_scalar_type_are_distinguished(judged: Callable[..., Comparison], ids: list[Any]) -> None:
    result = judged(scored(BASE, id=ids), scored(list(reversed(TUNED)), id=list(reversed(ids))))
    assert result == judged(scored(BASE), scored(TUNED))


def test_groups_are_resampled_together(judged: Callable[..., Comparison]) -> None:
    names = ["a", "a", "b", "b", "c", "d", "d", "e", "f", "g"]
    expected = paired_verdict(BASE, TUNED, groups=names)
    assert expected.groups == 7
    for base, tuned in (({"group": names}, {"group": names}), ({"group": names}, {}), ({}, {"group": names})):
        result = judged(scored(BASE, **base), scored(TUNED, **tuned))
        assert (result.groups, result.low, result.high) == (7, expected.low, expected.high)


def test_rows_without_a_group_are_groups_of_one_row(judged: Callable[..., Comparison]) -> None:
    """Also if the name of another group looks like a line."""
    base = scored(BASE)
    for row, group in ((0, 3), (1, 3), (5, 3), (8, "base.jsonl:1")):
        base[row]["group"] = group
    assert judged(base, scored(TUNED)).groups == 1 + 1 + 6


def test_settings_are_passed_to_the_comparison(judged: Callable[..., Comparison]) -> None:
    plain = judged(scored(BASE), scored(TUNED))
    assert judged(scored(BASE), scored(TUNED), min_gain=0.9).verdict == "not_better"
    wide = judged(scored(BASE), scored(TUNED), confidence=0.99)
    assert wide.low < plain.low
    assert judged(scored(BASE), scored(TUNED), seed=1).low != plain.low


def test_metric_is_the_only_common_number(judged: Callable[..., Comparison]) -> None:
    base = [{"id": i, "row": i, "group": i, "text": "x", "only_base": 1.0, "score": v} for i, v in enumerate(BASE)]
    tuned = [{"id": i, "row": i, "group": i, "text": "x", "score": v} for i, v in enumerate(TUNED)]
    assert judged(base, tuned).metric == "score"
    for row in tuned:
        row["only_base"] = 0.5
    with raises(DataError, "ambiguous-metric", 2, "only_base", "score"):
        judged(base, tuned)
    assert judged(base, tuned, metric="score").metric == "score"
    with raises(DataError, "ambiguous-metric", 0):
        judged([{"a": 1.0}], [{"b": 1.0}])


def test_booleans_are_scores(judged: Callable[..., Comparison]) -> None:
    result = judged([{"right": False}] * 30, [{"right": True}] * 30)
    assert (result.verdict, result.gain) == ("better", 1.0)


@pytest.mark.parametrize(
    ("base", "tuned", "code", "named", "where"),
    [
        (scored(BASE), scored(TUNED[:9]), "unpaired-rows", (10, 9), None),
        (scored([1, 2], id=["a", "a"]), scored([1, 2], id=["a", "b"]), "duplicate-id", ("1", "a"), "base.jsonl:2"),
        (scored([1, 2], id=["a", "b"]), scored([1, 2], id=["b", "b"]), "duplicate-id", ("1", "b"), "tuned.jsonl:2"),
        (scored([1, 2], id=["a", "b"]), scored([1, 2], id=["a", "c"]), "unpaired-rows", ("2 rows", "id b"), None),
        (scored([1, 2], id=["a", "b"]), scored([1], id=["a"]), "unpaired-rows", ("1 rows", "id b"), None),
        # By order, the second rows would be compared although only one of them has an id.
        (scored([1, 2], id=["a", "b"]), [*scored([1], id=["a"]), *scored([2])], "unpaired-rows", (), "tuned.jsonl:2"),
        (scored([1, 2]), scored([1, 2], id=["a", "b"]), "unpaired-rows", (), "base.jsonl:1"),
        (scored([1], id=[["a"]]), scored([1], id=[["a"]]), "wrong-value", ("`id`",), "base.jsonl:1"),
        (scored([1], group=[{}]), scored([1]), "wrong-value", ("`group`",), "base.jsonl:1"),
        (scored([1], group=["a"]), scored([1], group=["b"]), "unpaired-rows", ("'a'", "'b'"), "base.jsonl:1"),
        (scored([1, 2]), [{"rougeL": 1}, {"rougeL": None}], "not-a-number", ("None",), "tuned.jsonl:2"),
        (scored([1, 2]), [{"rougeL": 1}, {"rouge": 1}], "not-a-number", ("None",), "tuned.jsonl:2"),
        ('{"rougeL": 1}\n\n{"rougeL": NaN}', scored([1, 2]), "not-a-number", ("nan",), "base.jsonl:3"),
        ('{"rougeL": 1}\n{"rougeL": 1e999}', scored([1, 2]), "not-a-number", ("inf",), "base.jsonl:2"),
        (scored([1, 10**400]), scored([1, 2]), "not-a-number", (), "base.jsonl:2"),
        (scored([1, 2]), '{"rougeL": 1}\n{', "not-jsonl", (), "tuned.jsonl:2"),
        (scored([1, 2]), "", "no-rows", (), "tuned.jsonl"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(
    judged: Callable[..., Comparison],
    tmp_path: Path,
    base: Any,
    tuned: Any,
    code: str,
    named: tuple[Any, ...],
    where: str | None,
) -> None:
    with raises(DataError, code, *named, where=str(tmp_path / where) if where else None):
        judged(base, tuned)


def test_verdict_text(compared: Callable[..., FileVerdict]) -> None:
    result = compared([{"rougeL": 0}] * 40, [{"rougeL": 1}] * 40)
    assert verdict_text(result).startswith("better: rougeL 0.0000 -> 1.0000, gain +1.0000 [+0.")
    assert verdict_text(result).endswith("at 95%, 40 rows")
    undecided = compared(scored(BASE), scored([*TUNED[:3], *BASE[3:8], 0.1, 0.2]))
    assert undecided.comparison.verdict == "cannot_tell"
    settled = f"; about {undecided.comparison.rows_needed} rows would settle it"
    assert verdict_text(undecided).endswith(settled) or undecided.comparison.rows_needed is None
    assert verdict_text(compared(scored(TUNED), scored(BASE), min_gain=1.0)).startswith("not better: ")


def test_negative_min_gain_tests_non_inferiority(compared: Callable[..., FileVerdict]) -> None:
    worse = [value - 0.05 for value in BASE]
    result = compared(scored(BASE), scored(worse), min_gain=-0.5)
    assert result.comparison.verdict == "better"
    assert verdict_text(result).startswith("not worse by more than 0.5 (non-inferiority): ")
    assert verdict_text(compared(scored(worse), scored(BASE), min_gain=-0.5)).startswith("not worse by more than 0.5")
    assert verdict_text(compared(scored(TUNED), scored([0.0] * 10), min_gain=-0.1)).startswith("worse by more than 0.1")


# --- groups ---


@pytest.mark.parametrize("groups", [3, 4, 5, 6])
def test_verdict_on_few_groups_needs_more_groups(compared: Callable[..., FileVerdict], groups: int) -> None:
    base = [{"id": f"{g}-{i}", "group": f"db{g}", "rougeL": 0.0} for g in range(groups) for i in range(50)]
    tuned = [{"id": row["id"], "rougeL": 1.0} for row in base]
    result = compared(base, tuned)
    assert (result.comparison.rows, result.comparison.groups) == (50 * groups, groups)
    assert result.comparison.by_row[0] > 0  # independent rows would settle it
    if groups == 6:
        needed = result.comparison.groups_needed, result.comparison.rows_needed
        assert (result.comparison.verdict, *needed) == ("better", None, None)
        return
    needed = result.comparison.groups_needed, result.comparison.rows_needed
    assert (result.comparison.verdict, *needed) == ("cannot_tell", 6, 300)
    assert f"{50 * groups} rows in {groups} groups" in verdict_text(result)
    assert "at least 6 groups" in verdict_text(result)
    assert "300 rows" not in verdict_text(result)


# --- rows that failed ---


def test_failed_rows_are_left_out_for_both_and_counted(compared: Callable[..., FileVerdict]) -> None:
    base, tuned = scored(BASE * 4, id=list(range(40))), scored(TUNED * 4, id=list(range(40)))
    broken = [{"id": 7, "failed": "out of memory"}, {"id": 9, "failed": "out of memory", "rougeL": None}]
    result = compared([*base[:7], broken[0], *base[8:]], [*tuned[:9], broken[1], *tuned[10:]])
    answered = [row for row in range(40) if row not in (7, 9)]
    expected = paired_verdict([(BASE * 4)[row] for row in answered], [(TUNED * 4)[row] for row in answered])
    assert (result.comparison.verdict, result.comparison.rows, result.comparison.failed) == ("better", 38, 2)
    assert (result.comparison.low, result.comparison.high) == (expected.low, expected.high)
    assert "2 of 40 rows failed" in verdict_text(result)
    more = [{"id": row, "failed": "out of memory"} if row in (1, 2) else line for row, line in enumerate(base)]
    too_many = compared(more, [*tuned[:9], broken[1], *tuned[10:]])
    counts = too_many.comparison.failed, too_many.comparison.rows_needed
    assert (too_many.comparison.verdict, *counts) == ("cannot_tell", 3, None)
    with raises(DataError, "no-rows"):
        compared([{"rougeL": None, "failed": "x"}], [{"rougeL": 1}], metric="rougeL")


# --- directions ---


@pytest.mark.parametrize(
    ("name", "base", "tuned"),
    [("perplexity", 12.0, 9.0), ("wer", 0.4, 0.2), ("loss", 2.4, 1.2), ("eval_loss", 2.4, 1.2), ("test/CER", 0.4, 0.2),
     ("word_error_rate", 0.4, 0.2), ("bits-per-byte", 1.2, 0.9)],
)  # fmt: skip
def test_direction_follows_from_the_name(
    compared: Callable[..., FileVerdict], name: str, base: float, tuned: float
) -> None:
    before = [{name: base + 0.01 * (row % 7)} for row in range(40)]
    after = [{name: tuned + 0.01 * (row % 5)} for row in range(40)]
    result = compared(before, after)
    assert (result.comparison.verdict, result.comparison.higher_is_better, result.direction) == (
        "better",
        False,
        "known",
    )
    assert result.comparison.base > result.comparison.tuned > 0
    assert result.comparison.gain == pytest.approx(result.comparison.base - result.comparison.tuned)
    assert compared(after, before).comparison.verdict == "not_better"
    assert compared(before, after, higher_is_better=True).comparison.verdict == "not_better"


def test_assumed_direction_is_noted(compared: Callable[..., FileVerdict]) -> None:
    result = compared([{"zeal": 0.0}] * 40, [{"zeal": 1.0}] * 40)
    assert (result.comparison.verdict, result.direction) == ("better", "assumed")
    assert "--lower-is-better" in verdict_text(result)
    given = compared([{"zeal": 0.0}] * 40, [{"zeal": 1.0}] * 40, higher_is_better=False)
    assert (given.comparison.verdict, given.direction) == ("not_better", "given")
    assert "--lower-is-better" not in verdict_text(given)
    for name in ("rougeL", "exact_match", "token_accuracy", "eval/f1", "bleu-4", "pass@1"):
        assert higher_is_better(name) is True
    for name in ("loss_reduction", "fast", ""):
        assert higher_is_better(name) is None


def test_perplexity_is_computed_from_likelihoods(judged: Callable[..., Comparison]) -> None:
    def rows(nll: float) -> list[Row]:
        return [
            {"id": str(i), "group": str(i % 20), "tokens": 5.0 + i % 3, "correct": 2.0 + (nll < 2),
             "log_likelihood": -(nll + 0.1 * (i % 4)) * (5.0 + i % 3)}
            for i in range(40)
        ]  # fmt: skip

    result = judged(rows(2.5), rows(1.5), metric="perplexity")
    assert (result.verdict, result.higher_is_better, result.groups) == ("better", False, 20)
    mean = sum((2.5 + 0.1 * (i % 4)) * (5 + i % 3) for i in range(40)) / sum(5 + i % 3 for i in range(40))
    assert result.base == pytest.approx(math.exp(mean))
    accuracy = judged(rows(2.5), rows(1.5), metric="token_accuracy")
    assert accuracy.tuned == pytest.approx(3 * 40 / sum(5 + i % 3 for i in range(40)))
    with raises(DataError, "ambiguous-metric", "perplexity", "token_accuracy"):
        judged(rows(2.5), rows(1.5))


def test_min_gain_in_points_is_refused_for_shares(judged: Callable[..., Comparison]) -> None:
    with raises(RecipeError, "unreachable-threshold", 5, 0.05, where="--min-gain"):
        judged(scored(BASE), scored(TUNED), min_gain=5.0)
    percent = judged(scored([100 * value for value in BASE]), scored([100 * value for value in TUNED]), min_gain=5.0)
    assert percent.verdict == "better"
    assert judged([{"zeal": 0.1}] * 9, [{"zeal": 9.0}] * 9, min_gain=5.0).verdict == "better"


def test_ids_of_different_types_are_refused(judged: Callable[..., Comparison]) -> None:
    numbers, texts = list(range(10)), [str(i) for i in range(10)]
    with raises(DataError, "unpaired-rows", "id 0") as error:
        judged(scored(BASE, id=numbers), scored(TUNED, id=texts))
    assert "number" in str(error.value.hint)
    with raises(DataError, "unpaired-rows", "2 rows"):
        judged(scored(BASE, id=[*numbers[:9], 90]), scored(TUNED, id=numbers))
