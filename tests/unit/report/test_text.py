"""The comparison as text for a terminal."""

import re
from pathlib import Path

from tests.unit.report.conftest import MINUS, build_run

from tunesmith.report.collect import collect
from tunesmith.report.text import side_by_side
from tunesmith.report.wording import headline


def test_comparison_shows_verdict_problems_and_changed_rows(tmp_path: Path) -> None:
    run = build_run(tmp_path, hostile=True)
    text = side_by_side(run, 2)
    assert text.startswith(headline(collect(run)))
    assert "row 11  (better)" in text
    assert "Question: How many customers live in" in text
    assert "CREATE TABLE" not in text
    assert "148 more rows" in text
    assert re.search(r"base 50 \(33.3 %\), tuned 1 \(0.7 %\)", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_comparison_without_rows_or_verdict(tmp_path: Path) -> None:
    assert "row 11" not in side_by_side(build_run(tmp_path / "none"), 0)
    run = build_run(tmp_path / "part", until="prepare")
    assert side_by_side(run, 5) == headline(collect(run)) + "\n"


def test_a_further_set_has_a_table_of_all_its_metrics(tmp_path: Path) -> None:
    lines = side_by_side(build_run(tmp_path), 0).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("letters (80 rows)"))
    accuracy, perplexity = (re.split(" {2,}", line) for line in lines[start + 1 : start + 3])
    assert accuracy == ["token accuracy", "43.1 %", "42.8 %", f"{MINUS}0.3", f"{MINUS}0.9 to +0.3"]
    assert perplexity == [
        "perplexity",
        "15.20",
        "16.10",
        f"{MINUS}0.90",
        f"{MINUS}1.30 to {MINUS}0.50",
        "lower is better",
    ]
