"""Common shapes of rows, recognised by their columns, and how a recipe reads each."""

from collections.abc import Mapping
from typing import Any

from tunesmith.tasks.messages import SHAREGPT_ROLES

_PAIRS = (
    # (columns that rows must have, name of the shape, what to write in the recipe)
    (("instruction", "output"), "Alpaca's rows", '`prompt: "{instruction}\\n{input?}"` and `response: "{output}"`'),
    (("prompt", "chosen", "rejected"), "preference data, of which only one answer can be learned",
     '`prompt: "{prompt}"` and `response: "{chosen}"`'),
    (("prompt", "completion"), "OpenAI's prompts and completions",
     '`prompt: "{prompt}"` and `response: "{completion}"`'),
    (("question", "answer"), "questions and answers", '`prompt: "{question}"` and `response: "{answer}"`'),
)  # fmt: skip


def recognize_row_format(values: Mapping[str, Any]) -> str | None:
    """Return the name of a row's shape and how a recipe reads it; None if the shape is not known."""
    for column, value in values.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and {"from", "value"} <= first.keys():
            return (
                f"`{column}` holds ShareGPT's {{from, value}}: write each as {{role, content}} ({SHAREGPT_ROLES}), "
                f"then `messages: {column}`"
            )
        if isinstance(first, dict) and {"role", "content"} <= first.keys():
            return f"`{column}` holds messages of OpenAI's format: write `task: chat` and `messages: {column}`"
    for columns, name, settings in _PAIRS:
        if set(columns) <= values.keys() and all(isinstance(values[column], str) for column in columns):
            return f"these are {name}: write {settings}"
    return None
