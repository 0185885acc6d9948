"""Recognize the common formats of rows by their columns, and name the settings of a recipe that read them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.tasks.messages import is_message

_MESSAGES = ("messages", "conversations", "conversation", "dialog", "chat", "turns")
"""Columns of messages, the most usual first, if rows have several."""

_SYSTEM = ("system", "system_prompt", "system_message")

_PAIRS = (
    # (name, prompt, further columns of the prompt, answer)
    ("Alpaca rows", "instruction", ("input",), "output"),
    ("Dolly rows", "instruction", ("context",), "response"),
    ("inputs and outputs", "input", (), "output"),
    ("instructions and answers", "instruction", ("input", "context"), "answer"),
    ("prompts and completions", "prompt", (), "completion"),
    ("prompts and responses", "prompt", (), "response"),
    ("queries and responses", "query", (), "response"),
    ("queries and answers", "query", ("context",), "answer"),
    ("queries and answers", "query", ("context",), "answers"),
    ("questions and answers", "question", ("context", "passage"), "answer"),
    ("questions and answers", "question", ("context", "passage"), "answers"),
    ("questions and responses", "question", ("context",), "response"),
    ("problems and solutions", "problem", (), "solution"),
    ("questions and SQL", "question", ("context", "schema"), "sql"),
    ("sources and targets", "source", (), "target"),
    ("dialogues and summaries", "dialogue", (), "summary"),
    ("articles and summaries", "article", (), "highlights"),
    ("documents and summaries", "document", (), "summary"),
    ("texts and summaries", "text", (), "summary"),
    ("texts and labels", "text", (), "label"),
    ("sentences and labels", "sentence", (), "label"),
)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A known format of rows.

    Attributes:
        name: what the rows are, in words.
        settings: the keys of `data` that read them, such as `messages` or `prompt` and `response`.
        note: what these settings leave out; empty if nothing.
    """

    name: str
    settings: dict[str, str | list[str]]
    note: str = ""

    def hint(self) -> str:
        """Return the settings to write, in one sentence."""
        messages = self.settings.get("messages")
        if isinstance(messages, list):
            messages = f"[{', '.join(messages)}]"
        templates = (f"{key}: {json.dumps(text, ensure_ascii=False)}" for key, text in self.settings.items())
        written = ["task: chat", f"messages: {messages}"] if messages else templates
        note = f" ({self.note})" if self.note else ""
        return f"these are {self.name}{note}: write {' and '.join(f'`{setting}`' for setting in written)}"


def recognize_format(values: Mapping[str, Any], *, filled: Collection[str] = ()) -> RowFormat | None:
    """Return the format of a row; None if it is unknown.

    Args:
        filled: the columns that no row leaves empty; any other column that is not essential may be empty.
    """
    if "chosen" in values and "rejected" in values:
        return _preferences(values)
    holding = [column for column, value in values.items() if is_messages(value)]
    for completion in ("completion", "response"):
        if {"prompt", completion} <= set(holding):
            return RowFormat("conversations in two columns", {"messages": ["prompt", completion]})
    if holding and holding != ["prompt"]:
        column = min(holding, key=lambda name: _MESSAGES.index(name) if name in _MESSAGES else len(_MESSAGES))
        return RowFormat("conversations", {"messages": column})
    return _pair(values, filled)


def is_messages(value: Any) -> bool:
    """Return whether a cell is a list of messages, or its JSON text, as a CSV holds it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, list) and bool(value) and is_message(value[0])


def _preferences(values: Mapping[str, Any]) -> RowFormat | None:
    """Return how to train on the better answer of a preference pair; None if no setting reads it."""
    name, note = "preference pairs", "the chosen answer is trained on, and nothing is learned from the rejected one"
    prompt = next((column for column in ("prompt", "question", "instruction", "input") if column in values), None)
    if is_messages(values["chosen"]):
        columns: str | list[str] = "chosen"
        if prompt and is_messages(values[prompt]):
            columns = [prompt, "chosen"]
        return RowFormat(name, {"messages": columns}, note)
    if prompt is None or not (_is_text(values[prompt]) and _is_text(values["chosen"])):
        return None
    return RowFormat(name, {**_system(values), "prompt": f"{{{prompt}}}", "response": "{chosen}"}, note)


def _pair(values: Mapping[str, Any], filled: Collection[str]) -> RowFormat | None:
    by_folded_name = {column.casefold(): column for column, value in values.items() if _is_text(value)}
    for name, prompt, further, answer in _PAIRS:
        if {prompt, answer} <= by_folded_name.keys():
            columns = [by_folded_name[column] for column in further if column in by_folded_name]
            parts = [f"{{{column}}}" if column in filled else f"{{{column}?}}" for column in columns]
            before = [part for column, part in zip(columns, parts, strict=True) if column.casefold() != "input"]
            after = [part for part in parts if part not in before]
            template = "\n\n".join([*before, f"{{{by_folded_name[prompt]}}}", *after])
            return RowFormat(name, {**_system(values), "prompt": template, "response": f"{{{by_folded_name[answer]}}}"})
    return None


def _system(values: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the setting of a column of system turns."""
    column = next((column for column in _SYSTEM if isinstance(values.get(column), str)), None)
    return {"system": f"{{{column}?}}"} if column else {}


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and not is_messages(value))
