"""Objects and lists in rows become columns with paths."""

import json
from typing import Any

import pytest

from tunesmith.data.sources import Row
from tunesmith.draft.columns import describe_columns, leaf_name


def names(*values: dict[str, Any], reads_json: bool = False) -> list[str]:
    rows = [Row(number, f"x:{number}", each, "x") for number, each in enumerate(values, 1)]
    return list(describe_columns(rows, reads_json=reads_json))


def test_objects_become_columns_of_their_values() -> None:
    assert names({"a": {"b": 1, "c": {"d": "x", "e": None}}, "f": ""}) == ["a.b", "a.c.d"]
    assert names({"a": {"b": 1}}, {"a": {"c": 2}}) == ["a.b", "a.c"]
    assert names({"a": {"b": 1}}, {"a": "text"}) == ["a"]


def test_keys_that_templates_cannot_name_are_left_out() -> None:
    assert names({"a": {"b:c": 1, "d": 2}}) == ["a.d"]
    assert names({"a": {"b:c": 1}}) == ["a"]


def test_object_with_many_keys_is_data() -> None:
    assert names({"a": {str(i): i for i in range(60)}}) == ["a"]


def test_first_text_of_a_list_is_a_column() -> None:
    assert names({"a": ["x", "y"], "b": [1, 2]}) == ["a", "a.0", "b"]


def test_text_of_json_is_an_object_on_request() -> None:
    text = json.dumps({"b": {"c": "x"}})
    assert names({"a": text}) == ["a"]
    assert names({"a": text}, reads_json=True) == ["a.b.c"]
    assert names({"a": text}, {"a": "{no"}, reads_json=True) == ["a"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a", "a"), ("A.Answer", "answer"), ("answers.text.0", "answers"), ("text", "text"), ("a.0", "a"), ("0", "0")],
)
def test_name_of_a_path_says_what_it_holds(path: str, name: str) -> None:
    assert leaf_name(path) == name
