"""The references of a row: one or several columns, lists in cells, empty ones, and the response as a fallback."""

from typing import Any

import pytest
from tests.support.prompts import NumberTask

from tunesmith.core.records import Example, Turn
from tunesmith.recipe.schema import CompletionData
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.references import row_references, scored_reference


def _references(columns: Any, row: dict[str, Any]) -> tuple[str, ...]:
    data = CompletionData.model_validate({
        "source": {"file": "x"}, "task": "completion", "prompt": "{q}", "response": "{a}", "references": columns,
    })  # fmt: skip
    return row_references(data, row)


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (None, {"a": "one"}, ()),
        ("r", {"r": "one"}, ("one",)),
        ("r", {"r": ["one", "two", "one", "", None, 3, float("nan")]}, ("one", "two", "3")),
        (["b", "c", "d"], {"d": ["three"], "b": "one", "c": " "}, ("one", "three")),
        ("r", {}, ()),
        ("answers.text", {"answers": {"text": ["one", "two"]}}, ("one", "two")),
        ("answers.text", {"answers": None}, ()),
        ("r.text", {"r": {"text": ["one", "two"]}}, ("one", "two")),
        ("r.1", {"r": '["one", "two"]'}, ("two",)),
        ("r", {"r": []}, ()),
        ("r", {"r": None}, ()),
    ],
)
def test_references_are_the_texts_of_the_columns(columns: Any, row: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert _references(columns, row) == expected


@pytest.mark.parametrize("cell", [{"text": "one"}, [["one"]], [{"text": "one"}]])
def test_objects_are_refused(cell: Any) -> None:
    with pytest.raises(RowProblem) as caught:
        _references("r", {"r": cell})
    assert caught.value.code == "wrong-cell"


@pytest.mark.parametrize(
    ("references", "expected"), [((), "right"), (("one",), "one"), (("one", "two"), ["one", "two"])]
)
def test_a_row_without_references_is_scored_against_its_response(references: tuple[str, ...], expected: Any) -> None:
    turns = (Turn("prompt", "q", False), Turn("response", "right", True))
    example = Example("id", 1, "g", turns, references)
    assert scored_reference(NumberTask(), example) == expected  # type: ignore[arg-type]
    assert Example.from_json(example.to_json()) == example
    assert ("references" in example.to_json()) == bool(references)
