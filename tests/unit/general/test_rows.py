"""The general set: its rows are distinct, right where that can be computed, and short enough for small models."""

import re
from collections import Counter

from tunesmith.general import rows

ROWS = list(rows())
MAX_BYTES = 500  # of a row: at most as many tokens, so that it fits into a model with 512 positions
BLANK = re.compile(r"^\s|\s$|^$")


def test_rows_are_distinct_and_have_all_columns() -> None:
    assert {tuple(row) for row in ROWS} == {("kind", "language", "prompt", "response", "text")}
    for column in ("prompt", "text"):
        assert max(Counter(row[column] for row in ROWS).values()) == 1
    assert not [row for row in ROWS for value in row.values() if BLANK.search(value)]
    assert not [row for row in ROWS if re.search(r"<\||\[INST\]", row["text"])]


def test_there_are_many_kinds_and_languages() -> None:
    kinds, languages = (Counter(row[column] for row in ROWS) for column in ("kind", "language"))
    assert set(kinds) == {"prose", "explanation", "instruction", "code", "arithmetic", "fact", "words"}
    assert min(kinds.values()) >= 15
    assert len(languages) == 12
    assert 0.1 < 1 - languages["en"] / len(ROWS) < 0.3


def test_rows_are_short_and_enough_for_an_interval() -> None:
    assert len(ROWS) >= 200
    assert max(len(row["text"].encode()) for row in ROWS) <= MAX_BYTES


def test_text_holds_the_response_and_what_it_answers() -> None:
    for row in ROWS:
        assert row["text"].endswith(row["response"])
        assert (
            row["text"].removesuffix(row["response"]).removeprefix("Question: ").split("\nAnswer:")[0].strip()
            in (row["prompt"])
        )


def test_arithmetic_is_right() -> None:
    sums = [row["response"] for row in ROWS if re.fullmatch(r"\d+ [+-] \d+ = \d+", row["response"])]
    assert len(sums) == 16
    for line in sums:
        first, sign, second, _, result = line.split()
        assert int(first) + int(f"{sign}{second}") == int(result)
    products = [re.fullmatch(r"(\d+) times (\d+) is (\d+)\.", row["response"]) for row in ROWS]
    for found in filter(None, products):
        first, second, result = map(int, found.groups())
        assert first * second == result
