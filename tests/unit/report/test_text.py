"""The comparison on the terminal."""

import re
from pathlib import Path

from tests.unit.report.conftest import build_run

from tunesmith.report.text import side_by_side


def test_side_by_side(tmp_path: Path) -> None:
    """The terminal gets the verdict, the metrics, rows, and nothing that it would obey."""
    text = side_by_side(build_run(tmp_path, hostile=True), 2)
    assert "execution accuracy" in text
    assert "row 11  (better)" in text
    assert "Question: How many customers live in" in text
    assert "CREATE TABLE" not in text
    assert "148 more rows" in text
    assert re.search(
        r"^Cut off at the length limit: base \d+ \([\d.]+ %\), tuned \d+ \([\d.]+ %\)$", text, re.MULTILINE
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "row 11" not in side_by_side(build_run(tmp_path / "none"), 0)
    assert side_by_side(build_run(tmp_path / "part", until="prepare"), 5).startswith("There is no verdict yet")
