"""Filters reject rows with a reason; cells of a type that a filter does not apply to are problems of the row."""

from typing import Any

import pytest
from tests.support.errors import raises, row_problem

from tunesmith.core.errors import DataError
from tunesmith.data import filters
from tunesmith.data.filters import rejection_reason
from tunesmith.data.sources import Row
from tunesmith.recipe.data_source import Filter
from tunesmith.tasks.json_values import JsonNumber


def rejection(cell: Any, **rule: Any) -> str | None:
    return rejection_reason([Filter(column="c", **rule)], Row(1, "a.csv:2", {"c": cell}, "a.csv"))


@pytest.mark.parametrize(("rule", "accepted", "rejected", "reason"), [
    ({"equals": "en"}, ["en"], ["EN", "", None, 1], "`c` is not 'en'"),
    ({"equals": "1"}, ["1", 1], ["1.0", True], "`c` is not '1'"),
    ({"equals": 1}, ["1", 1, 1.0, "1.0"], ["one", "", None, True, "true", 2], "`c` is not 1"),
    ({"equals": "12.50"}, [JsonNumber("12.50"), "12.50"], [JsonNumber("12.5"), 12.5], "`c` is not '12.50'"),
    (
        {"equals": 12.5},
        [JsonNumber("12.50"), JsonNumber("1.25E1")],
        [JsonNumber("12.51"), JsonNumber("1e400")],
        "`c` is not 12.5",
    ),
    ({"equals": 2**53 + 1}, [2**53 + 1, str(2**53 + 1)], [2**53, JsonNumber(f"{2**53}.0")], f"`c` is not {2**53 + 1}"),
    ({"equals": "true"}, [True, "true"], [False, "True", 1], "`c` is not 'true'"),
    ({"max": 1e308}, [JsonNumber("1.0"), JsonNumber("-1e400")], [JsonNumber("1e400")], "`c` is above 1e+308"),
    ({"equals": True}, [True, "true", "True"], [False, "false", 1, "1", None], "`c` is not True"),
    ({"equals": False}, [False, "FALSE"], [True, 0, "", None], "`c` is not False"),
    ({"not_equals": "en"}, ["de", "", None], ["en"], "`c` is 'en'"),
    ({"one_of": ["a", 2]}, ["a", 2, "2"], ["b", 3, None], "`c` is not one of 'a', 2"),
    ({"matches": "^a+$"}, ["a", "aaa"], ["ba", "", None], "`c` does not match '^a+$'"),
    ({"not_matches": "(?i)as an ai"}, ["I can", "", None], ["But as an AI, I"], "`c` matches '(?i)as an ai'"),
    ({"min": 3}, [3, "3.5", 1e9], [2.9, "-4"], "`c` is below 3"),
    ({"max": 3}, [3, "3", -1], [3.01, "1e5"], "`c` is above 3"),
    ({"min": 3}, [3], ["", None, " "], "`c` is empty"),
    ({"min_characters": 2}, ["ab", 12], ["a", "", None, 1], "`c` has fewer than 2 characters"),
    ({"max_characters": 2}, ["ab", "", None], ["abc", 123], "`c` has more than 2 characters"),
])  # fmt: skip
def test_filter_rejects_cells_with_the_reason(
    rule: dict[str, Any], accepted: list[Any], rejected: list[Any], reason: str
) -> None:
    assert [cell for cell in accepted if rejection(cell, **rule) is not None] == []
    assert {rejection(cell, **rule) for cell in rejected} == {reason}


def test_first_filter_that_rejects_gives_the_reason() -> None:
    rules = [Filter(column="a", min=1, max=3), Filter(column="b", equals="x")]
    row = Row(1, "w", {"a": 2, "b": "x"}, "s")
    assert rejection_reason(rules, row) is None
    assert rejection_reason(rules, Row(1, "w", {"a": 4, "b": "y"}, "s")) == "`a` is above 3"
    assert rejection_reason(rules, Row(1, "w", {"a": 3, "b": "y"}, "s")) == "`b` is not 'x'"
    assert rejection_reason([], row) is None


def test_filter_treats_a_missing_column_as_empty() -> None:
    row = Row(1, "w", {}, "s")
    assert rejection_reason([Filter(column="c", equals="en")], row) == "`c` is not 'en'"
    assert rejection_reason([Filter(column="c", min=1)], row) == "`c` is empty"
    assert rejection_reason([Filter(column="c", not_equals="en")], row) is None


@pytest.mark.parametrize("cell", ["many", True, "nan", "1,5"])
def test_range_filter_needs_a_number(cell: Any) -> None:
    with row_problem("wrong-cell", "`c`"):
        rejection(cell, min=1)


@pytest.mark.parametrize("cell", [["a"], {"a": 1}, b"a"])
@pytest.mark.parametrize("rule", [{"matches": "a"}, {"equals": "a"}, {"min_characters": 1}, {"min": 1}])
def test_filter_needs_a_single_value(cell: Any, rule: dict[str, Any]) -> None:
    with row_problem("wrong-cell", type(cell).__name__):
        rejection(cell, **rule)


def test_slow_pattern_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_SECONDS_PER_CELL", 0.2)
    with raises(DataError, "slow-pattern", where="a.csv:2"):
        rejection("ab" * 40 + "c", matches=r"^(?:(?:a|b|ab)+)+$")


def test_filter_reads_a_path_into_a_column() -> None:
    rule = Filter(column="m.lang", one_of=("en", "de"))
    assert rejection_reason([rule], Row(1, "w", {"m": {"lang": "en"}}, "s")) is None
    assert rejection_reason([rule], Row(1, "w", {"m": '{"lang": "fr"}'}, "s")) == "`m.lang` is not one of 'en', 'de'"
    assert rejection_reason([rule], Row(1, "w", {"m": {}}, "s")) is not None
    with row_problem("wrong-cell", "`m`"):
        rejection_reason([rule], Row(1, "w", {"m": "{"}, "s"))
