"""The section `model`: the tokens to add, as a list or with texts."""

from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.recipe.model import Model, tokens_to_add


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ([], {}),
        (["<b>", "<a>"], {"<a>": None, "<b>": None}),
        ({"<b>": "SQL query", "<a>": None}, {"<a>": None, "<b>": "SQL query"}),
    ],
)
def test_tokens_are_a_list_or_have_texts(written: Any, tokens: dict[str, str | None]) -> None:
    model = Model.model_validate({"base": "x", "add_tokens": written})
    assert tokens_to_add(model) == tokens
    assert list(tokens_to_add(model)) == list(tokens)
    assert Model.model_validate(model.model_dump(mode="json")) == model


@pytest.mark.parametrize(
    "written",
    [
        [""],
        [" "],
        ["<a>", " <b>"],
        ["<a>\n"],
        ["<a>", "<b>", "<a>"],
        {"<a>": " "},
        {"<a>": 3},
        {1: "x"},
        "<a>",
        3,
        {"": "x"},
    ],
)
def test_blank_and_repeated_tokens_are_refused(written: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"base": "x", "add_tokens": written})
    assert [error["type"] for error in caught.value.errors()] == ["wrong-value"]
