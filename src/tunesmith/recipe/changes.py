"""Compare a run's settings with recorded ones, including records written by other versions of tunesmith.

A record holds every setting, defaults included. If it lacks a key, the key did not exist when the run was made, so its
default applies. A default that has changed since, and a key that no longer exists, count as changes.
"""

from typing import Any

from pydantic_core import to_jsonable_python

from tunesmith.recipe.base import Section

UNDO_HINT = "undo the change to continue this run, or pass another --out to start a new one"
"""The hint if a run was made from other inputs."""


def changed_keys(recorded: Any, wanted: Any, section: Any = None, path: str = "") -> set[str]:
    """Return the dotted keys under which two JSON values differ.

    Keys of the section that `wanted` leaves out are not compared, because they do not affect the result.

    Args:
        recorded: the value in the record.
        wanted: the value that would be recorded now.
        section: the section of the recipe, or the tuple of sections, that `wanted` was made from; None if it was made
            from something else.
        path: the key of both values.
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        recorded = _with_defaults(recorded, wanted, section)
        changed = set[str]()
        for key in recorded.keys() | wanted.keys():
            below = getattr(section, key, None) if isinstance(section, Section) else None
            changed |= changed_keys(recorded.get(key), wanted.get(key), below, f"{path}.{key}" if path else key)
        return changed
    if isinstance(section, tuple) and isinstance(recorded, list) and len(recorded) == len(section):
        return {path} if any(map(changed_keys, recorded, wanted, section)) else set()
    return {path} if recorded != wanted else set()


def _with_defaults(recorded: dict[str, Any], wanted: dict[str, Any], section: Any) -> dict[str, Any]:
    """Add the defaults of keys that a record lacks, and remove keys of the section that `wanted` leaves out."""
    fields = type(section).model_fields if isinstance(section, Section) else {}
    defaults = {key: field.get_default() for key, field in fields.items() if key in wanted and not field.is_required()}
    compared = {key: value for key, value in recorded.items() if key in wanted or key not in fields}
    return {**to_jsonable_python(defaults), **compared}
