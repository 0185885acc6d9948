"""The table of row formats, for hints of errors and for `init --from`."""

import json
from typing import Any

import pytest

from tunesmith.data.row_formats import recognize_format

USER, MODEL = {"role": "user", "content": "x"}, {"from": "gpt", "value": "y"}


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"messages": [USER]}, {"messages": "messages"}),
        ({"chat": [USER], "conversations": [MODEL]}, {"messages": "conversations"}),
        ({"talk": json.dumps([USER])}, {"messages": "talk"}),
        ({"prompt": [USER], "completion": [MODEL]}, {"messages": ["prompt", "completion"]}),
        ({"prompt": [USER], "chosen": [MODEL], "rejected": [MODEL]}, {"messages": ["prompt", "chosen"]}),
        ({"chosen": [USER, MODEL], "rejected": [USER, MODEL]}, {"messages": "chosen"}),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, {"prompt": "{prompt}", "response": "{chosen}"}),
        ({"instruction": "x", "input": "", "output": "y"},
         {"prompt": "{instruction}\n\n{input?}", "response": "{output}"}),
        ({"instruction": "x", "output": "y"}, {"prompt": "{instruction}", "response": "{output}"}),
        ({"Question": "x", "Answer": 7}, {"prompt": "{Question}", "response": "{Answer}"}),
        ({"system_prompt": "s", "question": "x", "response": "y"},
         {"system": "{system_prompt?}", "prompt": "{question}", "response": "{response}"}),
    ],
)  # fmt: skip
def test_known_formats(values: dict[str, Any], settings: dict[str, Any]) -> None:
    found = recognize_format(values)
    assert found is not None
    assert found.settings == settings
    assert all(str(text) in found.hint() for text in ("task: chat" if "messages" in settings else "response:",))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prompt": [USER]},
        {"prompt": [USER], "chosen": "y", "rejected": "z"},
        {"question": {"text": "x"}, "answer": "y"},
        {"messages": ["x"]},
        {"a": "x", "b": "y"},
    ],
)
def test_other_rows_are_not_recognized(values: dict[str, Any]) -> None:
    assert recognize_format(values) is None


def test_further_columns_that_are_always_filled_are_required() -> None:
    values = {"question": "x", "context": "c", "answer": "y"}
    found = recognize_format(values, filled={"context"})
    assert found is not None
    assert found.settings["prompt"] == "{context}\n\n{question}"
