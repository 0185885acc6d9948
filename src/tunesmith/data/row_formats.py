"""Recognize common row formats by their columns, and suggest recipe settings for them."""

from collections.abc import Mapping
from typing import Any

from tunesmith.tasks.messages import SHAREGPT_ROLES

_FORMATS = (
    # (required columns, name, settings for the recipe)
    (("instruction", "output"), "Alpaca rows", '`prompt: "{instruction}\\n{input?}"` and `response: "{output}"`'),
    (("prompt", "chosen", "rejected"), "preference pairs, of which only one answer can be trained on",
     '`prompt: "{prompt}"` and `response: "{chosen}"`'),
    (("prompt", "completion"), "OpenAI prompts and completions",
     '`prompt: "{prompt}"` and `response: "{completion}"`'),
    (("question", "answer"), "questions and answers", '`prompt: "{question}"` and `response: "{answer}"`'),
)  # fmt: skip


def recognize_row_format(values: Mapping[str, Any]) -> str | None:
    """Return a hint with the name of a row's format and the settings that read it; None if it is unknown."""
    for column, value in values.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and {"from", "value"} <= first.keys():
            return (
                f"`{column}` has ShareGPT messages {{from, value}}: convert each to {{role, content}} "
                f"({SHAREGPT_ROLES}), then write `messages: {column}`"
            )
        if isinstance(first, dict) and {"role", "content"} <= first.keys():
            return f"`{column}` has messages in OpenAI's format: write `task: chat` and `messages: {column}`"
    for columns, name, settings in _FORMATS:
        if set(columns) <= values.keys() and all(isinstance(values[column], str) for column in columns):
            return f"these are {name}: write {settings}"
    return None
