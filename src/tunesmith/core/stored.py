"""Rebuild records strictly from JSON that tunesmith wrote.

A value of another type, or one that contradicts the rest, is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from tunesmith.core.records import is_number

_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {  # by type: the check of a stored value, and what it should be
    float: (is_number, "a finite number"),
    int: (lambda value: type(value) is int and value >= 0, "a whole number from 0 up"),
    bool: (lambda value: type(value) is bool, "true or false"),
    str: (lambda value: type(value) is str, "a text"),
    tuple: (lambda value: type(value) is list, "a list"),
    Mapping: (lambda value: type(value) is dict, "an object"),
}


def typed(stored: Any, kind: Any, name: str) -> Any:
    """Return a JSON value as a value of a type or dataclass; raise ValueError with its name if it is of another type.

    Fields that the dataclass does not have are passed over.
    """
    inner = get_args(kind)
    if kind is Any or (stored is None and NoneType in inner):
        return stored
    if NoneType in inner:
        return typed(stored, inner[0], name)
    is_record = is_dataclass(kind)
    holds, description = _CHECKS[Mapping if is_record else get_origin(kind) or kind]
    if not holds(stored):
        raise ValueError(f"`{name}` is {stored!r}, not {description}")
    if is_record:
        for field in fields(kind):
            if field.default is MISSING and field.name not in stored:
                raise ValueError(f"`{name}.{field.name}` is missing")
        types = get_type_hints(kind)
        return kind(**{key: typed(value, types[key], f"{name}.{key}") for key, value in stored.items() if key in types})
    if isinstance(stored, list):
        return tuple(typed(entry, inner[0], f"{name}[{index}]") for index, entry in enumerate(stored))
    if isinstance(stored, dict):
        return {key: typed(value, inner[1], f"{name}.{key}") for key, value in stored.items()}
    return stored


def require_equal(derived: Any, stored: Any, name: str) -> None:
    """Raise ValueError at the first value that differs from the one that follows from the rest of the file.

    Fields that the record does not have are passed over.
    """
    if isinstance(derived, dict) and isinstance(stored, dict):
        for key, value in derived.items():
            if key not in stored:
                raise ValueError(f"`{name}{key}` is missing")
            require_equal(value, stored[key], f"{name}{key}.")
    elif isinstance(derived, list) and isinstance(stored, list) and len(derived) == len(stored):
        for value, other in zip(derived, stored, strict=True):
            require_equal(value, other, name)
    elif type(derived) is not type(stored) or derived != stored:
        raise ValueError(f"`{name.rstrip('.')}` is {stored!r}, which contradicts the rest: it should be {derived!r}")
