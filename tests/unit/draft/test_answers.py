"""The kind of answers decides the metrics."""

import json

import pytest

from tunesmith.draft.answers import recognize_answers

SENTENCE = "The cat number {} sat on a large and colourful mat."


@pytest.mark.parametrize(
    ("answers", "primary"),
    [
        ([("yes", "no", "maybe")[i % 3] for i in range(30)], "exact_match"),
        ([f"{i}" for i in range(50)], "exact_match"),
        ([f"-1,{i}.50 %" for i in range(50)], "exact_match"),
        ([json.dumps({"a": i}) for i in range(50)], "json_field_f1"),
        ([*(json.dumps({"a": i}) for i in range(49)), "{"], "exact_match"),
        ([f"select a from t where b = {i}" for i in range(50)], "exact_match"),
        ([f"Select the largest box, number {i}, and carry it home." for i in range(50)], "rougeL"),
        ([SENTENCE.format(i) for i in range(50)], "rougeL"),
        ([f"Ann {i}" for i in range(50)], "exact_match"),
        ([json.dumps([{"name": "add", "arguments": {"a": i % 9}}]) for i in range(90)], "tool_call_f1"),
        (
            [f'<tool_call>\n{{"name": "add", "arguments": {{"a": {i}}}}}\n</tool_call>' for i in range(50)],
            "tool_call_f1",
        ),
        ([json.dumps({"name": f"Ann {i}"}) for i in range(50)], "json_field_f1"),
        (["\u4f60\u597d" * (i + 9) for i in range(50)], "rougeL"),
        (["\U0001f600" * (i + 1) for i in range(50)], "chrf"),
    ],
    ids=[
        "labels",
        "numbers",
        "amounts",
        "JSON",
        "almost JSON",
        "SQL",
        "not SQL",
        "prose",
        "short",
        "JSON calls",
        "tagged calls",
        "JSON names",
        "Chinese",
        "emoji",
    ],
)
def test_metrics_fit_the_answers(answers: list[str], primary: str) -> None:
    kind = recognize_answers(answers)
    assert kind.primary == primary
    assert primary in (*kind.metrics, "rougeL")


def test_json_metric_needs_json_in_every_answer() -> None:
    answers = [json.dumps({"a": i}) for i in range(50)]
    assert "json_field_f1" in recognize_answers(answers).metrics
    assert "json_field_f1" not in recognize_answers([*answers, "{"]).metrics


def test_labels_are_few_and_repeated() -> None:
    assert recognize_answers(["b", "a", "b", "b"] * 5).labels == ("b", "a")
    assert recognize_answers([f"label {i}" for i in range(20)]).labels == ()
