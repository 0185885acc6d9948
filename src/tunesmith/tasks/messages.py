"""The messages of a row: each key is used, known to mean nothing to a model, or refused by name."""

import ast
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tunesmith.tasks.base import RowProblem

ROLES = ("system", "user", "assistant", "tool")
# Names and times of messages, which mean nothing to a model.
_IGNORED = ("id", "message_id", "uuid", "index", "timestamp", "created", "created_at")
# Whether a turn is learned: OpenAI's key, and another common one.
_LEARNED = {"weight": (0, 1), "train": (False, True)}
SHAREGPT_ROLES = "human -> user, gpt -> assistant, system -> system"
_PYTHON = "it is Python's notation, not JSON: write the column with json.dumps"
_LIST = "give a list of {role, content}, in CSV as JSON text"


class Message(NamedTuple):
    """One turn of a row; `learned` is false if the row says that it must not be."""

    role: str
    text: str
    learned: bool = True


def parse_messages(value: Any, column: str) -> list[Message]:
    """Return the messages in a cell: a list, or JSON text of one; raise RowProblem. Empty system turns are left out."""
    if isinstance(value, str):
        value = _parsed(value, column)
    if not isinstance(value, list):
        raise RowProblem(f"cell `{column}` is not a list of messages", hint=_list_hint(value))
    messages = (_message(message, number) for number, message in enumerate(value, 1))
    return [message for message in messages if message.role != "system" or message.text.strip()]


def _parsed(text: str, column: str) -> Any:
    """Return the value of JSON text, the only way for a CSV to hold a list."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowProblem(f"cell `{column}` is not a list of messages", hint=_text_hint(text)) from None


def _text_hint(text: str) -> str:
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _LIST
    return _PYTHON if isinstance(found, list | tuple | dict) else _LIST


def _list_hint(value: Any) -> str:
    if isinstance(value, dict):
        inside = next((name for name, inner in value.items() if isinstance(inner, list)), None)
        return f"it is an object with the keys {', '.join(value)}" + (
            f": make its `{inside}` the column" if inside else ""
        )
    return _LIST


def _message(message: Any, number: int) -> Message:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise RowProblem(f"a message is {_kind(message)}, not {{role, content}}", where)
    if "from" in message and "value" in message:
        raise RowProblem(
            "a message is {from, value}, not {role, content}", where,
            hint=f"this is ShareGPT's format: write `from` as `role` ({SHAREGPT_ROLES}) and `value` as `content`",
        )  # fmt: skip
    if "role" not in message:
        raise RowProblem("a message is not {role, content}", f"{where} has {', '.join(message) or 'no keys'}")
    for key in _lost(message):
        raise RowProblem(
            f"a message has `{key}`, which would be lost", where,
            hint=f"put its text into `content`, or leave `{key}` out",
        )  # fmt: skip
    if "content" not in message:
        raise RowProblem("a message is not {role, content}", f"{where} has {', '.join(message) or 'no keys'}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise RowProblem("a message has an unknown role", f"{role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str) and content is not None:
        hint = "join the texts of its parts; images and sounds are not read" if isinstance(content, list) else ""
        raise RowProblem(f"the content of a message is {_kind(content)}, not text", where, hint=hint)
    if role != "system" and not (content or "").strip():
        raise RowProblem("a message has no text", where)
    return Message(role, content or "", _is_learned(message, role, where))


def _lost(message: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that say something but that no template receives."""
    known = ("role", "content", *_LEARNED, *_IGNORED)
    return (key for key, value in message.items() if key not in known and value not in (None, "", [], {}, False))


def _is_learned(message: dict[str, Any], role: str, where: str) -> bool:
    """Say whether a message may be learned, by its `weight` or `train`."""
    for key, allowed in _LEARNED.items():
        value = message.get(key)
        if value is None:
            continue
        if value not in allowed or (key == "train" and not isinstance(value, bool)):
            known = " nor ".join(json.dumps(one) for one in allowed)
            raise RowProblem(f"`{key}` of a message is neither {known}", f"{where}: {value!r}")
        if value and role != "assistant":
            raise RowProblem(
                f"a message of the {role} has `{key}: {json.dumps(allowed[1])}`", where,
                hint="only turns of the assistant are learned; leave it out of the others",
            )  # fmt: skip
        if not value:
            return False
    return True


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
