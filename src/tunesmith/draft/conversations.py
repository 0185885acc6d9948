"""Choose the settings for what conversations have besides their text: tools, thoughts and system turns."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.draft.columns import Column
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.cells import InvalidJson, parse_json
from tunesmith.tasks.messages import CALL_ROLES
from tunesmith.tasks.reasoning import THOUGHT_BEGIN, THOUGHT_END, THOUGHT_KEYS, has_thought
from tunesmith.tasks.tool_calls import read_tools

_TOOLS = re.compile(r"(^|_)(tools?|functions?|apis?)(_|$)")
_SYSTEM = re.compile(r"system(_?(prompt|message|instruction))?s?")
_THOUGHTS = re.compile(
    r"(.*_)?(reasoning|thinking|thoughts?|rationale|cot|chain_of_thought)(_(content|trace|process))?"
)

Settings = tuple[dict[str, Any], dict[str, str]]
"""The keys of `data`, and the reasons for some of them."""


def add_conversation_settings(columns: Mapping[str, Column], settings: dict[str, Any]) -> Settings:
    """Return the settings of `task: chat` with those for tools, thoughts and system turns, and their reasons.

    Args:
        columns: all columns of the rows, by name.
        settings: `messages`, or `prompt` and `response`.
    """
    added: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    used = _messages(settings) or columns_in(settings["prompt"] + settings["response"])
    others = [column for column in columns.values() if column.name not in used]
    turns = list(_messages_of(columns, settings))
    tools = next((column for column in others if _TOOLS.search(column.leaf) and _holds_tools(column)), None)
    if tools:
        added["tools"] = tools.name
        reasons["tools"] = "given to the chat template; metrics of calls compare names and arguments"
    if "system" not in settings and not any(_role(turn) == "system" for turn in turns):
        system = next((each for each in others if _SYSTEM.fullmatch(each.leaf) and each.kind == "text"), None)
        if system and system is not tools:
            added["system"] = f"{{{system.name}{'' if system.is_filled else '?'}}}"
    if "messages" in settings:
        answers = [turn for turn in turns if _role(turn) != "user"]
        if any(_thought(turn) for turn in answers):
            added["reasoning"] = "keep"
            if _has_several_thoughts(columns, settings):
                added["train_on"] = "last"
                reasons["train_on"] = (
                    "many templates drop the thoughts of earlier answers, which cannot be trained then"
                )
    elif thought := next((each for each in others if _THOUGHTS.fullmatch(each.leaf) and each.kind == "text"), None):
        added["response"] = f"{THOUGHT_BEGIN}{{{thought.name}?}}{THOUGHT_END}{settings['response']}"
        added["reasoning"] = "keep"
    elif any(has_thought(str(value)) for name in columns_in(settings["response"]) for value in columns[name].values):
        added["reasoning"] = "keep"
    if "reasoning" in added:
        reasons["reasoning"] = "thoughts are trained on and not judged; `mask` shows them only, `strip` removes them"
    return settings | added, reasons


def _messages_of(columns: Mapping[str, Column], settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the messages of all rows, if the settings read messages."""
    for conversation in _conversations(columns, settings):
        yield from conversation


def _conversations(columns: Mapping[str, Column], settings: Mapping[str, Any]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the messages of each cell."""
    for name in _messages(settings):
        for value in columns[name].values:
            try:
                read = parse_json(value, name) if isinstance(value, str) else value
            except InvalidJson:
                continue
            if isinstance(read, list):
                yield [message for message in read if isinstance(message, Mapping)]


def write_tools_as_text(columns: Mapping[str, Column], settings: Mapping[str, Any]) -> Settings | None:
    """Return settings for a model whose chat template writes neither tools nor calls; None if text cannot hold them.

    The tools become the system turn, and calls that are a turn of their own become its text.
    """
    turns = list(_messages_of(columns, settings))
    is_structured = any(turn.get(key) for turn in turns for key in ("tool_calls", "function_call"))
    has_system = any(_role(turn) == "system" for turn in turns)
    tools = columns[settings["tools"]]
    if is_structured or has_system or not all(isinstance(value, str) for value in tools.values):
        return None
    text = {key: value for key, value in settings.items() if key != "tools"}
    listed = f"Tools that you can call:\n{{{tools.name}}}" if tools.is_filled else f"{{{tools.name}?}}"
    text["system"] = "\n\n".join(filter(None, [settings.get("system"), listed]))
    reasons = {"system": "the tools, as text: the model's chat template writes none"}
    if roles := {str(role): "assistant" for turn in turns if _role(turn) in CALL_ROLES for role in [turn.get("from")]}:
        text["roles"] = roles
        reasons["roles"] = "calls are trained as the text that the rows have, because the template writes none"
    return text, reasons


def _messages(settings: Mapping[str, Any]) -> tuple[str, ...]:
    names = settings.get("messages", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _holds_tools(column: Column) -> bool:
    try:
        return bool(read_tools(column.example))
    except RowProblem:
        return False


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role", turn.get("from", ""))).strip().lower()


def _thought(turn: Mapping[str, Any]) -> bool:
    """Whether a message has a thought, in a key or in its text."""
    text = next((turn[key] for key in ("content", "value", "text") if isinstance(turn.get(key), str)), "")
    return any(turn.get(key) for key in THOUGHT_KEYS) or has_thought(text)


def _has_several_thoughts(columns: Mapping[str, Column], settings: Mapping[str, Any]) -> bool:
    return any(sum(map(_thought, conversation)) > 1 for conversation in _conversations(columns, settings))
