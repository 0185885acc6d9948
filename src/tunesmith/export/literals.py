"""Values of JSON as source code: as expressions of Python, for cards, and of Jinja, for chat templates."""

import json
from collections.abc import Callable, Mapping
from typing import Any


def python_text(text: str) -> str:
    """Return a string literal with double quotes; characters that a reader cannot see are escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in quoted)


def python_value(value: Any) -> str:
    """Return a JSON value as a Python expression."""
    return _expression(value, python_text, repr)


def jinja_value(value: Any) -> str:
    """Return a JSON value as a Jinja expression."""
    return _expression(value, _jinja_text, _jinja_constant)


def _jinja_text(text: str) -> str:
    # Jinja reads escapes as Python does, and would read JSON's surrogate pairs as two characters.
    return json.dumps(text, ensure_ascii=False)


def _jinja_constant(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _expression(value: Any, text: Callable[[str], str], constant: Callable[[Any], str]) -> str:
    """Return an expression for a value; its strings are written by `text`, its numbers, true and null by `constant`."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        items = (f"{text(str(key))}: {_expression(item, text, constant)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_expression(item, text, constant) for item in value) + "]"
    return constant(value)
