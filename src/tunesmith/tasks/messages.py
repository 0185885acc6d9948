"""Read a row's messages: {role, content} as OpenAI writes them, or {from, value} as ShareGPT does.

Keys of a message are used, or ignored because they hold no text; any other drops the row.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tunesmith.core.records import Turn
from tunesmith.tasks.base import EmptyCell, RowProblem, cell_value
from tunesmith.tasks.cells import InvalidJson, parse_json
from tunesmith.tasks.reasoning import THOUGHT, THOUGHT_KEYS
from tunesmith.tasks.tool_calls import read_calls

ROLES = ("system", "user", "assistant", "tool")
CALL_ROLES = ("function_call", "tool_call", "tool_calls")
"""Roles of ShareGPT's turns whose text is the JSON of a tool call."""
# Identifiers and times of messages, which no template writes.
_IGNORED_KEYS = ("id", "message_id", "uuid", "index", "timestamp", "created", "created_at")
# Keys that include or exclude a turn from training, with their two values: OpenAI's, and another common one.
_TRAIN_KEYS = {"weight": (0, 1), "train": (False, True)}
# Tool calls: OpenAI's key, and its former one, which holds a single call.
_CALL_KEYS = ("tool_calls", "function_call")
# What a template may write of a tool's result besides its content.
_RESULT_KEYS = ("tool_call_id", "name")
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")
# Names of roles in published conversations, in lower case: those that Axolotl and LLaMA-Factory know, and those of the
# OpenAssistant and LMSYS data.
_ROLE_NAMES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response", "tool_result", "function"), "tool"),
}
_PYTHON_HINT = "it is Python's notation instead of JSON: write the column with json.dumps"
_problem = partial(RowProblem, code="wrong-messages")
_LIST_HINT = "give a list of {role, content} or {from, value}; in CSV, as JSON text"


def parse_messages(
    row: Mapping[str, Any], column: str, roles: Mapping[str, str], *, with_thoughts: bool = False
) -> list[Turn]:
    """Return the turns of a cell, which holds a list of messages or its JSON text. Empty system turns are left out.

    All answers of the assistant are trained, except those that the row excludes.

    Args:
        roles: names of roles that the rows use, and which of ROLES each is; the usual names are known.
        with_thoughts: whether answers may have their thought in a key.

    Raises:
        RowProblem, MissingColumn: as `Task.parse`.
    """
    value = cell_value(row, column)
    if value is None:
        raise EmptyCell(column)
    if isinstance(value, str):  # the only form in which a CSV can hold a list
        try:
            value = parse_json(value, column)
        except InvalidJson:
            raise _wrong_cell(column, _text_hint(value)) from None
    if not isinstance(value, list):
        raise _wrong_cell(column, _object_hint(column, value) if isinstance(value, dict) else _LIST_HINT)
    turns = (_parse_message(message, number, roles, with_thoughts) for number, message in enumerate(value, 1))
    return [turn for turn in turns if turn.role != "system" or turn.text.strip()]


def _wrong_cell(column: str, hint: str) -> RowProblem:
    return _problem(f"cell `{column}` is not a list of messages", hint=hint)


def _text_hint(text: str) -> str:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _LIST_HINT
    return _PYTHON_HINT if isinstance(value, list | tuple | dict) else _LIST_HINT


def _object_hint(column: str, value: dict[str, Any]) -> str:
    inner = next((name for name, item in value.items() if isinstance(item, list)), None)
    hint = f"it is an object with the keys {', '.join(value)}"
    return f"{hint}: write `messages: {column}.{inner}`" if inner else hint


def is_message(value: Any) -> bool:
    """Return whether a value has the keys of a message."""
    return isinstance(value, dict) and all(_key_of(value, names) for names in (_ROLE_KEYS, _CONTENT_KEYS))


def _parse_message(message: Any, number: int, roles: Mapping[str, str], with_thoughts: bool) -> Turn:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise _problem(f"a message is {_type_name(message)}, not {{role, content}}", where)
    message = _with_calls(message, roles)
    role_key, content_key = _key_of(message, _ROLE_KEYS), _key_of(message, _CONTENT_KEYS)
    call_key = _key_of(message, _CALL_KEYS)
    if not role_key or not (content_key or call_key):
        found = f"{where} has {', '.join(map(str, message)) or 'no keys'}"
        raise _problem("a message is neither {role, content} nor {from, value}", found)
    role, content = _role(message[role_key], roles), message.get(content_key)
    used = {"assistant": _CALL_KEYS + THOUGHT_KEYS * with_thoughts, "tool": _RESULT_KEYS}.get(role, ())
    for key in _lost_keys(message, (role_key, content_key, *used)):
        hint = f"move its text to `content`, or remove `{key}`"
        if role == "assistant" and key in THOUGHT_KEYS:
            hint = "set data.reasoning: keep to train on thoughts, mask to show them only, or strip to remove them"
        raise _problem(f"a message has `{key}`, which would be lost", where, hint=hint)
    calls = read_calls(message[call_key], where) if call_key and message[call_key] else []
    if not isinstance(content, str) and content is not None:
        hint = "join the texts of its parts; images and audio are not supported" if isinstance(content, list) else ""
        reason = f"the content of a message is {_type_name(content)}, not text"
        raise _problem(reason, where, hint=hint)
    texts = {
        name: _key_text(message[name], name, where) for name in used if name not in _CALL_KEYS and message.get(name)
    }
    thought = next((texts[name] for name in THOUGHT_KEYS if name in texts), "")
    if not (role in ("system", "tool") or calls or thought or (content or "").strip()):
        raise _problem("a message has no text", where)
    keys: dict[str, Any] = {"tool_calls": calls} if calls else {}
    keys |= {THOUGHT: thought} if thought else {}
    keys |= {name: text for name, text in texts.items() if name in _RESULT_KEYS}
    return Turn(role, content or "", _is_trained(message, role, where), keys=keys)


def _key_text(value: Any, name: str, where: str) -> str:
    """Return the text of a key such as `reasoning_content`; raise RowProblem if it is a list or an object."""
    if isinstance(value, list | dict):
        hint = "join the texts of its parts" if isinstance(value, list) else "name the text in it"
        raise _problem(f"`{name}` of a message is {_type_name(value)}, not text", where, hint=hint)
    return str(value)


def _with_calls(message: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """Return a message whose role says that its text is a tool call as one of the assistant; others unchanged."""
    role_key, content_key = _key_of(message, _ROLE_KEYS), _key_of(message, _CONTENT_KEYS)
    role = message.get(role_key)
    if not content_key or not isinstance(role, str) or role in roles or role.strip().lower() not in CALL_ROLES:
        return message
    others = {key: value for key, value in message.items() if key not in (role_key, content_key)}
    return {**others, "role": "assistant", "content": "", "tool_calls": message[content_key]}


def _key_of(message: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of the names under which a message has a value, or else has null; empty if it has none."""
    present = [name for name in names if name in message]
    return next((name for name in present if message[name] is not None), next(iter(present), ""))


def _role(name: Any, roles: Mapping[str, str]) -> str:
    """Return the role that a row calls `name`; raise RowProblem if it is unknown."""
    folded = name.strip().lower() if isinstance(name, str) else ""
    role = roles.get(name) if isinstance(name, str) else None
    role = role or _ROLE_NAMES.get(folded, folded)
    if role not in ROLES:
        hint = f"say what it is with `data.roles`, such as {{{name}: user}}" if folded else ""
        detail = f"{name!r} is not one of {', '.join(ROLES)}"
        raise RowProblem("a message has an unknown role", detail, code="unknown-role", hint=hint)
    return role


def _lost_keys(message: dict[str, Any], used: tuple[str, ...]) -> Iterator[str]:
    """Yield the keys, besides the used ones, whose values no template would write."""
    known = (*used, *_TRAIN_KEYS, *_IGNORED_KEYS)
    return (key for key, value in message.items() if key not in known and value not in (None, "", [], {}, False))


def _is_trained(message: dict[str, Any], role: str, where: str) -> bool:
    """Return whether a message is an answer of the assistant that is trained on, by its `weight` or `train`."""
    for key, allowed in _TRAIN_KEYS.items():
        value = message.get(key)
        if value is None:
            continue
        if value not in allowed or (key == "train" and not isinstance(value, bool)):
            choices = " nor ".join(map(json.dumps, allowed))
            raise _problem(f"`{key}` of a message is neither {choices}", f"{where}: {value!r}")
        if value and role != "assistant":
            hint = "only turns of the assistant are trained on; remove the key from the others"
            raise _problem(f"a message of the {role} has `{key}: {json.dumps(allowed[1])}`", where, hint=hint)
        if not value:
            return False
    return role == "assistant"


def _type_name(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
