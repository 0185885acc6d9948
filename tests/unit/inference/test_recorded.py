"""Rows that are asked have the columns of the recipe, whichever of two names they come with."""

from typing import Any

import pytest

from tunesmith.inference.recorded import RecordedOptions


@pytest.mark.parametrize(
    ("rename", "row", "found"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": "b"}, {"a": 1, "x": 2}, {"b": 1, "x": 2}),
        ({"a": "b"}, {"b": 1}, {"b": 1}),
        ({"a": "b"}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"a": "b", "b": "c"}, {"a": 1, "b": 2}, {"b": 1, "c": 2}),
        ({"a": "b", "b": "a"}, {"a": 1, "b": 2}, {"b": 1, "a": 2}),
        ({"a": "b", "b": "c"}, {"b": 1, "c": 2}, {"b": 1, "c": 2}),
    ],
)
def test_columns_are_renamed_unless_they_are_there(
    rename: dict[str, str], row: dict[str, Any], found: dict[str, Any]
) -> None:
    assert RecordedOptions(rename=rename).renamed(row) == found
