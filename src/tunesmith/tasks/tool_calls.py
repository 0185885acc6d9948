"""Read tools and tool calls in the forms in which datasets have them, and return them in OpenAI's.

A tool is {type: function, function: {name, description, parameters}}, a call {id, type: function, function: {name,
arguments}}; the arguments become an object, because chat templates write them as JSON themselves.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from tunesmith.core.records import Turn
from tunesmith.tasks.base import RowProblem

TOOLS_ROLE = "tools"
"""The role of the turn that holds a row's tools, as JSON text."""

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_problem = partial(RowProblem, code="wrong-tools")


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Return tools from a list of them, or from its JSON text; each may lack the outer object.

    Raises:
        RowProblem: they have another form.
    """
    tools = _from_text(value, "the tools are")
    if not isinstance(tools, list):
        raise _problem("the tools are not a list", hint="give a list of {name, description, parameters}, or its JSON")
    read = []
    for number, item in enumerate(tools, 1):
        tool = _from_text(item, "a tool is")
        function = tool.get("function", tool if "name" in tool else None) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            hint = "write each as {name, description, parameters}, or as {type: function, function: {...}}"
            raise _problem("a tool has no name", f"tool {number}", hint=hint)
        outer = tool if "function" in tool else {"function": tool}
        read.append(_plain_json(outer if "type" in outer else {"type": "function", **outer}))
    return read


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls of a message from a list of them, or from its JSON text, with their arguments as objects.

    Raises:
        RowProblem: they have another form.
    """
    calls = _from_text(value, "the calls are")
    calls = calls if isinstance(calls, list) else [calls]
    return [_read_call(_from_text(call, "a call is"), where) for call in calls]


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise _problem("a tool call has no name", where, hint="write it as {name, arguments}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) or arguments is None:
        arguments = _from_text(arguments or "{}", "the arguments of a call are")
    if not isinstance(arguments, Mapping):
        raise _problem("the arguments of a tool call are not an object", f"{where}: {str(arguments)[:80]}")
    identifier = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return _plain_json(
        {**identifier, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    )


def shorten_call_ids(turns: Iterable[Turn]) -> list[Turn]:
    """Return turns whose calls have ids of nine letters and digits, as Mistral's templates need them.

    Other ids and missing ones become numbers in the conversation, also in the results. A result without an id belongs
    to the first call that has none yet.
    """
    numbers, new_ids, pending = count(1), dict[str, str](), list[str]()
    changed = []
    for turn in turns:
        keys = dict(turn.keys)
        if calls := keys.get("tool_calls"):
            old_ids = [call.get("id", "") for call in calls]
            pending = [old if _SHORT_ID.fullmatch(old) else f"call{next(numbers):05}" for old in old_ids]
            new_ids |= {old: new for old, new in zip(old_ids, pending, strict=True) if old}
            keys["tool_calls"] = [{**call, "id": new} for call, new in zip(calls, pending, strict=True)]
        elif turn.role == "tool" and (new := new_ids.get(keys.get("tool_call_id", ""), next(iter(pending), ""))):
            pending = [other for other in pending if other != new]
            keys["tool_call_id"] = new
        changed.append(replace(turn, keys=keys))
    return changed


def _from_text(value: Any, what: str) -> Any:
    """Return the value of a JSON text; other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        hint = "write it with json.dumps" if value.lstrip().startswith(("[", "{")) else ""
        raise _problem(f"{what} not JSON", repr(value[:80]), hint=hint) from None


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value as JSON stores it, so that it is the same before and after."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _problem("tools or tool calls hold a value that JSON cannot store", str(error)) from error
    return plain


def map_strings(value: Any, replaced: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it replaced, in order; the keys of objects stay."""
    if isinstance(value, str):
        return replaced(value)
    if isinstance(value, list):
        return [map_strings(item, replaced) for item in value]
    if isinstance(value, dict):
        return {key: map_strings(item, replaced) for key, item in value.items()}
    return value


def iterate_texts(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, and the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from iterate_texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from iterate_texts(item)


def template_texts(turn: Turn) -> Iterator[str]:
    """Yield the texts of a turn that count as the template's: identifiers of calls, and names of arguments."""
    for key, value in turn.keys.items():
        if key in ("tool_call_id", "name"):
            yield value
        for call in value if key == "tool_calls" else ():
            yield call.get("id", "")
            yield from iterate_texts(map_strings(call["function"]["arguments"], lambda _: ""))
