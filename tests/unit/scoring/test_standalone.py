"""Scores of JSONL files of any system, and errors with file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.unit.scoring.conftest import Write

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring.corpus import corpus_bleu
from tunesmith.scoring.standalone import score_file, score_text

LINE_ENDS = "a\u2028b\u2029c\x85d\x0ce"


def test_score_file_returns_values_and_means(write: Write) -> None:
    file = write([{"prediction": "a b", "reference": "a b", "other": 1}, {"prediction": "x", "reference": ["y", "x"]},
                  {"prediction": "", "reference": "z"}])  # fmt: skip
    result = score_file(file, ["exact_match", "rouge1"])
    assert result == {
        "rows": 3, "mean": {"exact_match": 2 / 3, "rouge1": 2 / 3},
        "values": {"exact_match": [1.0, 1.0, 0.0], "rouge1": [1.0, 1.0, 0.0]},
    }  # fmt: skip
    assert "corpus" not in result
    assert score_text(result).splitlines() == ["exact_match    0.6667", "rouge1         0.6667", "rows           3"]


def test_unicode_line_ends_in_text_do_not_end_a_row(write: Write) -> None:
    file = write([{"prediction": LINE_ENDS, "reference": LINE_ENDS}] * 2)
    assert score_file(file, ["exact_match"])["values"] == {"exact_match": [1.0, 1.0]}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("first", ["", "\ufeff"])
def test_line_ends_blank_lines_and_byte_order_mark_are_accepted(write: Write, ends: str, first: str) -> None:
    text = first + ends.join(['{"prediction": "a", "reference": "a"}'] * 3) + ends
    assert score_file(write(text), ["exact_match"])["rows"] == 3


@pytest.mark.parametrize(
    ("text", "code", "named", "line"),
    [
        ('{"prediction": "a", "reference": "a"}\n\n{"prediction": "a"}', "missing-key", "`reference`", ":3"),
        ('{"reference": "a"}', "missing-key", "`prediction`", ":1"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction": null, "reference": "a"}', "not-text", "", ":2"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction": "a", "reference": null}', "not-text", "", ":2"),
        ('{"prediction": "a", "reference": ["a", 1]}', "not-text", "`reference`", ":1"),
        ('{"prediction": "a", "reference": []}', "not-text", "`reference`", ":1"),
        ('{"prediction": "a", "reference": "a"}\n{"prediction"', "not-jsonl", "", ":2"),
        ("\n[1, 2]\n", "not-jsonl", "", ":2"),
        ('"a"', "not-jsonl", "", ":1"),
        ("[" * 100_000, "not-jsonl", "", ":1"),
        ('{"prediction": ' + "9" * 5000 + "}", "not-jsonl", "", ":1"),
        ("", "no-rows", "", ""),
        ("\n \n", "no-rows", "", ""),
        (b'{"prediction": "\xff"}', "encoding", "", ""),
    ],
)
def test_invalid_files_are_refused(write: Write, text: Any, code: str, named: str, line: str) -> None:
    file = write(text)
    with raises(DataError, code, named, where=f"{file}{line}") as error:
        score_file(file, ["exact_match"])
    assert error.value.exit_code == 3


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jsonl", tmp_path):
        with raises(DataError, "unreadable", where=str(path)):
            score_file(path, ["exact_match"])


def test_unknown_metric_is_refused(write: Write) -> None:
    with raises(RecipeError, "unknown-metric", "`rougeL`"):
        score_file(write([{"prediction": "a", "reference": "a"}]), ["rougel"])


# --- files of another kind ---


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (gzip.compress(b'{"prediction": "a", "reference": "a"}'), "gunzip"),
        (b'[{"prediction": "a", "reference": "a"}]', "jq -c"),
        (b'[\n  {"prediction": "a",\n   "reference": "a"}\n]\n', "jq -c"),
        (b'[{"prediction": "a", "reference": "a"},\n', "jq -c"),
    ],
    ids=["gzip", "list", "list on lines", "cut list"],  # compressed bytes contain the time
)
def test_hint_has_the_command_that_converts_a_file(write: Write, content: bytes, command: str) -> None:
    with raises(DataError, "not-jsonl") as error:
        score_file(write(content), ["exact_match"])
    assert command in str(error.value.hint)


def test_unscorable_references_are_a_warning(write: Write) -> None:
    rows = [{"prediction": "yes", "reference": "yes"}, {"prediction": ":-)", "reference": ":-)"}]
    result = score_file(write(rows), ["rougeL", "exact_match"])
    assert len(result["warnings"]) == 1
    assert "1 of 2" in score_text(result)
    assert "warnings" not in score_file(write(rows), ["exact_match"])


def test_rows_with_an_error_are_left_out_and_counted(write: Write) -> None:
    row = {"prediction": "a", "reference": "a", "error": None}
    failed = {"prediction": "", "reference": "a", "error": "no room"}
    result = score_file(write([row, failed, {**row, "error": 0.5}, {**row, "prediction": ""}]), ["exact_match"])
    assert (result["rows"], result["mean"]["exact_match"]) == (3, pytest.approx(2 / 3))
    assert result["values"] == {"exact_match": [1.0, None, 1.0, 0.0]}
    assert "1 of 4 rows" in score_text(result)
    with raises(DataError, "no-rows"):
        score_file(write([failed]), ["exact_match"])
    refused = write([failed, {**row, "reference": "{"}])
    with raises(DataError, "reference-not-json", where=f"{refused}:2"):
        score_file(refused, ["json_field_f1"])


def test_refused_reference_is_named_by_its_line(write: Write) -> None:
    file = write('{"prediction": "{}", "reference": "{}"}\n\n{"prediction": "{}", "reference": "no"}\n')
    with raises(DataError, "reference-not-json", where=f"{file}:3"):
        score_file(file, ["json_field_f1"])


def test_metric_of_ones_own_gets_the_rows_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def views(p, r, rows):\n    return [row['views'] for row in rows]\n")
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prediction": "", "reference": "", "views": n}) + "\n" for n in (4, 2)))
    assert score_file(file, ["mine:views"], folder=tmp_path)["values"] == {"mine:views": [4.0, 2.0]}


def test_score_file_gives_corpus_scores(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = [("the cat sat on the mat", ["a cat sat on the mat", "the cat sat"]), ("no", "yes it is so")]
    file.write_text("".join(json.dumps({"prediction": p, "reference": r}) + "\n" for p, r in rows))
    result = score_file(file, ["bleu", "chrf", "rougeL"])
    assert list(result["corpus"]) == ["bleu", "chrf"]
    found = corpus_bleu([p for p, _ in rows], [rows[0][1], [rows[1][1]]])
    assert result["corpus"]["bleu"] == {"value": found.value, "signature": found.signature}
    assert f"corpus bleu    {found.value:.4f} ({found.signature})" in score_text(result).splitlines()
