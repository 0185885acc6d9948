"""Scores and verdicts of files from anywhere: rows meet their partners; what is wrong is told with file and line."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.verdict import Comparison
from tunesmith.scoring.metrics import higher_is_better
from tunesmith.scoring.standalone import FileVerdict, compare_files, score_file, score_text, verdict_text
from tunesmith.scoring.verdict import paired_verdict

Row = dict[str, Any]
Write = Callable[..., Path]
LINE_ENDS = "a\u2028b\u2029c\x85d\x0ce"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows, or text as it is, to a file."""

    def written(rows: list[Row] | str | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(rows, list):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        return path

    return written


@pytest.fixture
def compared(write: Write) -> Callable[..., FileVerdict]:
    """Write the rows of two systems and compare the files."""

    def compare(
        base: list[Row] | str, tuned: list[Row] | str, metric: str | None = None, **settings: Any
    ) -> FileVerdict:
        given = {"min_gain": 0.0, "confidence": 0.95, "seed": 0, **settings}
        return compare_files(write(base, "base.jsonl"), write(tuned, "tuned.jsonl"), metric=metric, **given)

    return compare


@pytest.fixture
def judged(compared: Callable[..., FileVerdict]) -> Callable[..., Comparison]:
    """Write the rows of two systems and return their comparison."""
    return lambda *rows, **settings: compared(*rows, **settings).comparison


def scored(values: list[float], **more: list[Any]) -> list[Row]:
    return [{"rougeL": value} | {key: column[i] for key, column in more.items()} for i, value in enumerate(values)]


BASE = [0.1, 0.5, 0.3, 0.2, 0.9, 0.4, 0.35, 0.15, 0.25, 0.6]
TUNED = [0.4, 0.6, 0.2, 0.5, 0.95, 0.9, 0.75, 0.35, 0.75, 0.8]

# --- score ---


def test_rows_are_scored_and_averaged(write: Write) -> None:
    file = write([{"prediction": "a b", "reference": "a b", "other": 1}, {"prediction": "x", "reference": ["y", "x"]},
                  {"prediction": "", "reference": "z"}])  # fmt: skip
    found = score_file(file, ["exact_match", "rouge1"])
    assert found == {
        "rows": 3, "mean": {"exact_match": 2 / 3, "rouge1": 2 / 3},
        "values": {"exact_match": [1.0, 1.0, 0.0], "rouge1": [1.0, 1.0, 0.0]},
    }  # fmt: skip
    assert score_text(found).splitlines() == ["exact_match    0.6667", "rouge1         0.6667", "rows           3"]


def test_text_may_hold_whatever_json_can_hold(write: Write) -> None:
    file = write([{"prediction": LINE_ENDS, "reference": LINE_ENDS}] * 2)
    assert score_file(file, ["exact_match"])["values"] == {"exact_match": [1.0, 1.0]}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("first", ["", "\ufeff"])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(write: Write, ends: str, first: str) -> None:
    text = first + ends.join(['{"prediction": "a", "reference": "a"}'] * 3) + ends
    assert score_file(write(text), ["exact_match"])["rows"] == 3


@pytest.mark.parametrize(
    ("text", "told", "line"),
    [
        ('{"prediction": "a", "reference": "a"}\n\n{"prediction": "a"}', "has no `reference`", ":3"),
        ('{"reference": "a"}', "has no `prediction`", ":1"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction": null, "reference": "a"}', "is not text", ":2"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction": "a", "reference": null}', "`reference` is not", ":2"),
        ('{"prediction": "a", "reference": ["a", 1]}', "`reference` is not", ":1"),
        ('{"prediction": "a", "reference": []}', "`reference` is not", ":1"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction"', "not valid JSON", ":2"),
        ("\n[1, 2]\n", "not a JSON object", ":2"),
        ('"a"', "not a JSON object", ":1"),
        ("[" * 100_000, "not valid JSON", ":1"),
        ('{"prediction": ' + "9" * 5000 + "}", "not valid JSON", ":1"),
        ("", "no rows", ""),
        ("\n \n", "no rows", ""),
        (b'{"prediction": "\xff"}', "not UTF-8", ""),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(write: Write, text: Any, told: str, line: str) -> None:
    file = write(text)
    with pytest.raises(DataError, match=told) as caught:
        score_file(file, ["exact_match"])
    assert caught.value.where == f"{file}{line}"
    assert caught.value.exit_code == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as caught:
            score_file(path, ["exact_match"])
        assert caught.value.where == str(path)


def test_unknown_metrics_are_refused(write: Write) -> None:
    with pytest.raises(RecipeError, match="did you mean `rougeL`"):
        score_file(write([{"prediction": "a", "reference": "a"}]), ["rougel"])


# --- verdict ---


def test_rows_are_paired_by_order(judged: Callable[..., Comparison]) -> None:
    found = judged(scored(BASE), scored(TUNED))
    wanted = paired_verdict(BASE, TUNED)
    assert (found.metric, found.verdict) == ("rougeL", wanted.verdict)
    assert (found.gain, found.low, found.high) == (wanted.gain, wanted.low, wanted.high)
    assert (found.base, found.tuned, found.rows) == (wanted.base, wanted.tuned, 10)


def test_rows_are_paired_by_id_where_they_have_one(judged: Callable[..., Comparison]) -> None:
    ids = [f"row-{i}" for i in range(10)]
    tuned = list(reversed(scored(TUNED, id=ids)))
    found = judged(scored(BASE, id=ids), tuned)
    assert found == judged(scored(BASE), scored(TUNED))
    assert found != judged(scored(BASE), [{"rougeL": row["rougeL"]} for row in tuned])
    assert (found.improved, found.worsened) == (9, 1)


@pytest.mark.parametrize("ids", [list(range(10)), [None, True, 1, 0, False, "1", 2.5, "", "None", -1]])
def test_ids_of_any_plain_kind_are_told_apart(judged: Callable[..., Comparison], ids: list[Any]) -> None:
    found = judged(scored(BASE, id=ids), scored(list(reversed(TUNED)), id=list(reversed(ids))))
    assert found == judged(scored(BASE), scored(TUNED))


def test_groups_are_resampled_together(judged: Callable[..., Comparison]) -> None:
    names = ["a", "a", "b", "b", "c", "d", "d", "e", "f", "g"]
    wanted = paired_verdict(BASE, TUNED, groups=names)
    assert wanted.groups == 7
    for base, tuned in (({"group": names}, {"group": names}), ({"group": names}, {}), ({}, {"group": names})):
        found = judged(scored(BASE, **base), scored(TUNED, **tuned))
        assert (found.groups, found.low, found.high) == (7, wanted.low, wanted.high)


def test_rows_without_a_group_stand_for_themselves_beside_those_with_one(judged: Callable[..., Comparison]) -> None:
    """Also where a group is named by a number that could be taken for a line."""
    base = scored(BASE)
    for place, group in ((0, 3), (1, 3), (5, 3), (8, "base.jsonl:1")):
        base[place]["group"] = group
    assert judged(base, scored(TUNED)).groups == 1 + 1 + 6


def test_settings_reach_the_verdict(judged: Callable[..., Comparison]) -> None:
    plain = judged(scored(BASE), scored(TUNED))
    assert judged(scored(BASE), scored(TUNED), min_gain=0.9).verdict == "not_better"
    wide = judged(scored(BASE), scored(TUNED), confidence=0.99)
    assert wide.low < plain.low
    assert judged(scored(BASE), scored(TUNED), seed=1).low != plain.low


def test_the_one_number_that_both_have_is_the_metric(judged: Callable[..., Comparison]) -> None:
    base = [{"id": i, "row": i, "group": i, "text": "x", "only_base": 1.0, "score": v} for i, v in enumerate(BASE)]
    tuned = [{"id": i, "row": i, "group": i, "text": "x", "score": v} for i, v in enumerate(TUNED)]
    assert judged(base, tuned).metric == "score"
    for row in tuned:
        row["only_base"] = 0.5
    with pytest.raises(DataError, match="2 values to compare") as caught:
        judged(base, tuned)
    assert "only_base" in str(caught.value.hint)
    assert judged(base, tuned, metric="score").metric == "score"
    with pytest.raises(DataError, match="0 values"):
        judged([{"a": 1.0}], [{"b": 1.0}])


def test_truth_values_are_scores(judged: Callable[..., Comparison]) -> None:
    found = judged([{"right": False}] * 30, [{"right": True}] * 30)
    assert (found.verdict, found.gain) == ("better", 1.0)


@pytest.mark.parametrize(
    ("base", "tuned", "told", "where"),
    [
        (scored(BASE), scored(TUNED[:9]), "10 rows and", None),
        (scored([1, 2], id=["a", "a"]), scored([1, 2], id=["a", "b"]), "line 1 again: a", "base.jsonl:2"),
        (scored([1, 2], id=["a", "b"]), scored([1, 2], id=["b", "b"]), "line 1 again: b", "tuned.jsonl:2"),
        (scored([1, 2], id=["a", "b"]), scored([1, 2], id=["a", "c"]), "2 rows are in one file only.*id b", None),
        (scored([1, 2], id=["a", "b"]), scored([1], id=["a"]), "1 rows are in one file only.*id b", None),
        # By order, the second rows would be compared although one has a name and the other has none.
        (scored([1, 2], id=["a", "b"]), [*scored([1], id=["a"]), *scored([2])], "has no `id`", "tuned.jsonl:2"),
        (scored([1, 2]), scored([1, 2], id=["a", "b"]), "has no `id`", "base.jsonl:1"),
        (scored([1], id=[["a"]]), scored([1], id=[["a"]]), "`id` is", "base.jsonl:1"),
        (scored([1], group=[{}]), scored([1]), "`group` is", "base.jsonl:1"),
        (scored([1], group=["a"]), scored([1], group=["b"]), "different groups: 'a' and 'b'", "base.jsonl:1"),
        (scored([1, 2]), [{"rougeL": 1}, {"rougeL": None}], "None, not a finite", "tuned.jsonl:2"),
        (scored([1, 2]), [{"rougeL": 1}, {"rouge": 1}], "None, not a finite", "tuned.jsonl:2"),
        ('{"rougeL": 1}\n\n{"rougeL": NaN}', scored([1, 2]), "nan, not a finite", "base.jsonl:3"),
        ('{"rougeL": 1}\n{"rougeL": 1e999}', scored([1, 2]), "inf, not a finite", "base.jsonl:2"),
        (scored([1, 10**400]), scored([1, 2]), "not a finite", "base.jsonl:2"),
        (scored([1, 2]), '{"rougeL": 1}\n{', "not valid JSON", "tuned.jsonl:2"),
        (scored([1, 2]), "", "has no rows", "tuned.jsonl"),
    ],
)
def test_rows_that_cannot_be_compared_are_told(
    judged: Callable[..., Comparison], tmp_path: Path, base: Any, tuned: Any, told: str, where: str | None
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        judged(base, tuned)
    if where is not None:
        assert caught.value.where == str(tmp_path / where)


def test_a_verdict_is_a_sentence(compared: Callable[..., FileVerdict]) -> None:
    found = compared([{"rougeL": 0}] * 40, [{"rougeL": 1}] * 40)
    assert verdict_text(found).startswith("better: rougeL 0.0000 -> 1.0000, gain +1.0000 [+0.")
    assert verdict_text(found).endswith("at 95%, 40 rows")
    undecided = compared(scored(BASE), scored([*TUNED[:3], *BASE[3:8], 0.1, 0.2]))
    assert undecided.comparison.verdict == "cannot_tell"
    settled = f"; about {undecided.comparison.rows_needed} rows would settle it"
    assert verdict_text(undecided).endswith(settled) or undecided.comparison.rows_needed is None
    assert verdict_text(compared(scored(TUNED), scored(BASE), min_gain=1.0)).startswith("not better: ")


def test_a_negative_min_gain_is_a_margin(compared: Callable[..., FileVerdict]) -> None:
    worse = [value - 0.05 for value in BASE]
    found = compared(scored(BASE), scored(worse), min_gain=-0.5)
    assert found.comparison.verdict == "better"
    assert verdict_text(found).startswith("not worse by more than 0.5 (non-inferiority): ")
    assert verdict_text(compared(scored(worse), scored(BASE), min_gain=-0.5)).startswith("not worse by more than 0.5")
    assert verdict_text(compared(scored(TUNED), scored([0.0] * 10), min_gain=-0.1)).startswith("worse by more than 0.1")


# --- groups ---


@pytest.mark.parametrize("groups", [3, 4, 5, 6])
def test_few_groups_are_settled_by_groups_and_never_by_rows(compared: Callable[..., FileVerdict], groups: int) -> None:
    base = [{"id": f"{g}-{i}", "group": f"db{g}", "rougeL": 0.0} for g in range(groups) for i in range(50)]
    tuned = [{"id": row["id"], "rougeL": 1.0} for row in base]
    found = compared(base, tuned)
    assert (found.comparison.rows, found.comparison.groups) == (50 * groups, groups)
    assert found.comparison.by_row[0] > 0  # by row it would be settled
    if groups == 6:
        needed = found.comparison.groups_needed, found.comparison.rows_needed
        assert (found.comparison.verdict, *needed) == ("better", None, None)
        return
    needed = found.comparison.groups_needed, found.comparison.rows_needed
    assert (found.comparison.verdict, *needed) == ("cannot_tell", 6, 300)
    assert f"{50 * groups} rows in {groups} groups" in verdict_text(found)
    assert "at least 6 groups" in verdict_text(found)
    assert "300 rows" not in verdict_text(found)


# --- rows that failed ---


def test_rows_that_failed_are_left_out_of_both_and_counted(compared: Callable[..., FileVerdict]) -> None:
    base, tuned = scored(BASE * 4, id=list(range(40))), scored(TUNED * 4, id=list(range(40)))
    broken = [{"id": 7, "failed": "no room"}, {"id": 9, "failed": "no room", "rougeL": None}]
    found = compared([*base[:7], broken[0], *base[8:]], [*tuned[:9], broken[1], *tuned[10:]])
    kept = [row for row in range(40) if row not in (7, 9)]
    expected = paired_verdict([(BASE * 4)[row] for row in kept], [(TUNED * 4)[row] for row in kept])
    assert (found.comparison.verdict, found.comparison.rows, found.comparison.failed) == ("better", 38, 2)
    assert (found.comparison.low, found.comparison.high) == (expected.low, expected.high)
    assert "2 of 40 rows failed" in verdict_text(found)
    more = [{"id": row, "failed": "no room"} if row in (1, 2) else line for row, line in enumerate(base)]
    too_many = compared(more, [*tuned[:9], broken[1], *tuned[10:]])
    counts = too_many.comparison.failed, too_many.comparison.rows_needed
    assert (too_many.comparison.verdict, *counts) == ("cannot_tell", 3, None)
    with pytest.raises(DataError, match="no row was answered"):
        compared([{"rougeL": None, "failed": "x"}], [{"rougeL": 1}], metric="rougeL")


# --- directions ---


@pytest.mark.parametrize(
    ("name", "base", "tuned"),
    [("perplexity", 12.0, 9.0), ("wer", 0.4, 0.2), ("loss", 2.4, 1.2), ("eval_loss", 2.4, 1.2), ("test/CER", 0.4, 0.2),
     ("word_error_rate", 0.4, 0.2), ("bits-per-byte", 1.2, 0.9)],
)  # fmt: skip
def test_metrics_whose_lower_values_are_better_are_known_by_name(
    compared: Callable[..., FileVerdict], name: str, base: float, tuned: float
) -> None:
    before = [{name: base + 0.01 * (row % 7)} for row in range(40)]
    after = [{name: tuned + 0.01 * (row % 5)} for row in range(40)]
    found = compared(before, after)
    assert (found.comparison.verdict, found.comparison.higher_is_better, found.direction) == ("better", False, "known")
    assert found.comparison.base > found.comparison.tuned > 0
    assert found.comparison.gain == pytest.approx(found.comparison.base - found.comparison.tuned)
    assert compared(after, before).comparison.verdict == "not_better"
    assert compared(before, after, higher_is_better=True).comparison.verdict == "not_better"


def test_an_assumed_direction_is_stated(compared: Callable[..., FileVerdict]) -> None:
    found = compared([{"zeal": 0.0}] * 40, [{"zeal": 1.0}] * 40)
    assert (found.comparison.verdict, found.direction) == ("better", "assumed")
    assert "--lower-is-better" in verdict_text(found)
    given = compared([{"zeal": 0.0}] * 40, [{"zeal": 1.0}] * 40, higher_is_better=False)
    assert (given.comparison.verdict, given.direction) == ("not_better", "given")
    assert "--lower-is-better" not in verdict_text(given)
    for name in ("rougeL", "exact_match", "token_accuracy", "eval/f1", "bleu-4", "pass@1"):
        assert higher_is_better(name) is True
    for name in ("loss_reduction", "fast", ""):
        assert higher_is_better(name) is None


def test_perplexity_follows_from_the_likelihoods_of_a_run(judged: Callable[..., Comparison]) -> None:
    def rows(nll: float) -> list[Row]:
        return [
            {"id": str(i), "group": str(i % 20), "tokens": 5.0 + i % 3, "correct": 2.0 + (nll < 2),
             "log_likelihood": -(nll + 0.1 * (i % 4)) * (5.0 + i % 3)}
            for i in range(40)
        ]  # fmt: skip

    found = judged(rows(2.5), rows(1.5), metric="perplexity")
    assert (found.verdict, found.higher_is_better, found.groups) == ("better", False, 20)
    mean = sum((2.5 + 0.1 * (i % 4)) * (5 + i % 3) for i in range(40)) / sum(5 + i % 3 for i in range(40))
    assert found.base == pytest.approx(math.exp(mean))
    accuracy = judged(rows(2.5), rows(1.5), metric="token_accuracy")
    assert accuracy.tuned == pytest.approx(3 * 40 / sum(5 + i % 3 for i in range(40)))
    with pytest.raises(DataError, match="2 values to compare"):
        judged(rows(2.5), rows(1.5))


def test_a_min_gain_in_points_is_refused_if_values_are_shares(judged: Callable[..., Comparison]) -> None:
    with pytest.raises(RecipeError, match="5 points are"):
        judged(scored(BASE), scored(TUNED), min_gain=5.0)
    percent = judged(scored([100 * value for value in BASE]), scored([100 * value for value in TUNED]), min_gain=5.0)
    assert percent.verdict == "better"
    assert judged([{"zeal": 0.1}] * 9, [{"zeal": 9.0}] * 9, min_gain=5.0).verdict == "better"


# --- files of another kind ---


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        (gzip.compress(b'{"prediction": "a", "reference": "a"}'), "gzip", "gunzip"),
        (b'[{"prediction": "a", "reference": "a"}]', "JSON list", "jq -c"),
        (b'[\n  {"prediction": "a",\n   "reference": "a"}\n]\n', "JSON list", "jq -c"),
        (b'[{"prediction": "a", "reference": "a"},\n', "JSON list", "jq -c"),
    ],
)
def test_the_hint_for_another_kind_of_file_says_how_to_convert_it(
    write: Write, content: bytes, told: str, hint: str
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        score_file(write(content), ["exact_match"])
    assert hint in str(caught.value.hint)


def test_ids_of_different_types_are_refused(judged: Callable[..., Comparison]) -> None:
    numbers, texts = list(range(10)), [str(i) for i in range(10)]
    with pytest.raises(DataError) as caught:
        judged(scored(BASE, id=numbers), scored(TUNED, id=texts))
    assert "`id` 0 is a number in" in caught.value.message
    assert "and text in" in caught.value.message
    with pytest.raises(DataError, match="2 rows are in one file only"):
        judged(scored(BASE, id=[*numbers[:9], 90]), scored(TUNED, id=numbers))


def test_a_metric_that_is_blind_on_references_is_warned_of(write: Write) -> None:
    rows = [{"prediction": "yes", "reference": "yes"}, {"prediction": ":-)", "reference": ":-)"}]
    found = score_file(write(rows), ["rougeL", "exact_match"])
    assert len(found["warnings"]) == 1
    assert "1 of 2" in score_text(found)
    assert "warnings" not in score_file(write(rows), ["exact_match"])


def test_a_reference_that_a_metric_refuses_is_reported_with_its_line(write: Write) -> None:
    file = write('{"prediction": "{}", "reference": "{}"}\n\n{"prediction": "{}", "reference": "no"}\n')
    with pytest.raises(DataError, match="is not JSON") as caught:
        score_file(file, ["json_field_f1"])
    assert caught.value.where == f"{file}:3"
