"""Columns of rows for `generate` are renamed as in the model's recipe, unless they have the new name already."""

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
def test_columns_are_renamed_unless_the_new_name_exists(
    rename: dict[str, str], row: dict[str, Any], found: dict[str, Any]
) -> None:
    assert RecordedOptions(rename=rename).renamed(row) == found
