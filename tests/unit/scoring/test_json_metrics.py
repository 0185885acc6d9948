"""Metrics for JSON: which answers are valid JSON, and F1 over their leaves."""

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.scoring.json_metrics import json_field_f1, json_valid


def f1(prediction: str, reference: str) -> float:
    return json_field_f1([prediction], [[reference]])[0]


@pytest.mark.parametrize("text", ['{"a": 1}', " [1, 2]\n", '"x"', "null", "-0.5e3", '{"a": {"b": []}}', "1e999"])
def test_valid_json(text: str) -> None:
    assert json_valid([text]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "", "yes", "{'a': 1}", '{"a": 1', '{"a": 1} and more', '```json\n{"a": 1}\n```', "NaN", "-Infinity", "[1,]",
        "[" * 10**5,
    ],
)  # fmt: skip
def test_invalid_json(text: str) -> None:
    assert json_valid([text]) == [0.0]
    assert f1(text, '{"a": 1}') == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1}', 1),
        ('{"a": 1, "b": "y"}', '{"a": 1, "b": "x"}', 1 / 2),
        ('{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 2 * 1 / (1 + 3)),
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1}', 2 * 1 / (1 + 3)),
        ('{"a": {"b": 1, "c": 2}}', '{"a": {"b": 1, "c": 3}}', 1 / 2),
        ('{"b": 1}', '{"a": {"b": 1}}', 0),
        ('{"a": [1, 2, 3]}', '{"a": [1, 3, 2]}', 1 / 3),
        ('{"a": {"0": 1}}', '{"a": [1]}', 0),
        ('{"a": 1}', '{"a": 1.0}', 1),
        ('{"a": 1}', '{"a": "1"}', 0),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": null}', '{"a": false}', 0),
        ('{"a": null}', "{}", 0),
        ("{}", "{}", 1),
        ("[]", "{}", 0),
        ('{"a": []}', '{"a": {}}', 0),
        ('{"a": 1, "a": 2}', '{"a": 2}', 1),
        ("7", "7", 1),
    ],
)
def test_leaves_are_compared_by_path_and_value(prediction: str, reference: str, value: float) -> None:
    assert f1(prediction, reference) == pytest.approx(value)


def test_best_reference_counts() -> None:
    assert json_field_f1(['{"a": 2}'], [['{"a": 1}', '{"a": 2}']]) == [1.0]


def test_reference_that_is_not_json_is_refused() -> None:
    with raises(DataError, "reference-not-json", where="references[1]"):
        json_field_f1(["{}", "{}"], [["{}"], ["so be it"]])
