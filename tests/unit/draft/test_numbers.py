"""The numbers of a recipe follow from lengths and counts."""

from collections import Counter

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.draft.measure import Measured
from tunesmith.draft.numbers import (
    answer_limit,
    differing_in_numbers,
    identical_rows,
    length_limits,
    split_fractions,
    training_numbers,
)


def measured(lengths: list[int], problems: int = 0, groups: int | None = None) -> Measured:
    names = [str(i % (groups or len(lengths))) for i in range(len(lengths))]
    return Measured(
        len(lengths) + problems, sorted(lengths), sorted(lengths), names, names, names, names, Counter(),
        Counter({"bad": problems} if problems else {}),
    )  # fmt: skip


def chosen(lengths: list[int], problems: int = 0, **options: object) -> dict[str, object]:
    settings = {"room": None, "is_text": False, "exact": True, **options}
    return {each.key: each.value for each in length_limits(measured(lengths, problems), **settings)}  # type: ignore[arg-type]


def test_limit_is_above_the_longest_row_unless_that_is_an_outlier() -> None:
    assert chosen([100] * 99 + [140]) == {"max_tokens_per_example": 192}
    assert chosen([100] * 999 + [5000]) == {"max_tokens_per_example": 128}


def test_limit_of_estimated_lengths_has_a_margin() -> None:
    assert chosen([200] * 100) == {"max_tokens_per_example": 256}
    assert chosen([200] * 100, exact=False) == {"max_tokens_per_example": 320}


def test_context_length_limits_rows_and_allows_what_it_drops() -> None:
    assert chosen([100] * 90 + [900] * 10, room=500) == {"max_tokens_per_example": 500, "max_dropped_fraction": 0.14}


def test_context_length_that_drops_most_rows_is_refused() -> None:
    with raises(DataError, "too-many-dropped", "60 of 100", "500"):
        chosen([100] * 40 + [900] * 60, room=500)


def test_unusable_rows_are_allowed() -> None:
    assert chosen([100] * 95, problems=5)["max_dropped_fraction"] == 0.08
    assert "max_dropped_fraction" not in chosen([100] * 1000, problems=5)


def test_long_documents_are_split() -> None:
    assert chosen([100, 5000], is_text=True) == {"max_tokens_per_example": 1024, "too_long": "split"}


def test_answer_limit_has_room_and_an_end() -> None:
    assert answer_limit(measured([10] * 99 + [400]), exact=True).value == 16
    assert answer_limit(measured([200] * 100), exact=True).value == 224
    assert answer_limit(measured([2000] * 100), exact=True).value == 512


@pytest.mark.parametrize(
    ("count", "held_out", "is_all", "fractions"),
    [
        (5000, [], True, {"valid": 0.05, "test": 0.1}),
        (500, [], True, {"valid": 0.1, "test": 0.2}),
        (5000, [], False, {"valid": 0.02, "test": 0.05}),
        (500, ["valid"], True, {"test": 0.2}),
        (500, ["test"], True, {"valid": 0.1}),
        (500, ["valid", "test"], True, {}),
    ],
)
def test_fractions_follow_from_the_number_of_rows(
    count: int, held_out: list[str], is_all: bool, fractions: dict[str, float]
) -> None:
    settings = split_fractions(measured([5] * count), count, held_out, is_all=is_all)
    assert {each.key: each.value for each in settings} == fractions


def test_fractions_leave_rows_in_every_split_or_are_refused() -> None:
    for groups in (8, 12, 20):
        settings = split_fractions(measured([5] * 40, groups=groups), 40, [], is_all=True)
        assert [each.key for each in settings] == ["valid", "test"]
    with raises(DataError, "empty-split"):
        split_fractions(measured([5] * 40, groups=1), 40, [], is_all=True)


def test_small_data_is_seen_more_often_in_smaller_steps() -> None:
    def numbers(rows: int, *, is_text: bool = False, is_all: bool = True) -> list[object]:
        return [each.value for each in training_numbers(rows, is_text=is_text, is_all=is_all)]

    assert numbers(100) == [3, 4]
    assert numbers(1_500) == [2, 8]
    assert numbers(5_000) == [2, 16]
    assert numbers(5_000, is_text=True) == [1, 16]
    assert numbers(20_000, is_all=False) == [1, 16]


def test_prompts_that_differ_in_numbers_are_counted() -> None:
    assert differing_in_numbers([f"What is {i} + 1?" for i in range(60)]).startswith("59 of 60")
    assert differing_in_numbers([f"Say {'a' * i}" for i in range(1, 61)]) == ""
    assert differing_in_numbers(["Say 1", "Say 2"]) == ""


def test_identical_rows_are_counted() -> None:
    assert identical_rows(measured([5] * 40, groups=20)).startswith("20 of 40")
    assert identical_rows(measured([5] * 40)) == ""
