"""Find the cell of a row that a name means: a column, or a path such as `translation.en` or `answers.text.0` into one.

A path descends into objects by their keys, into lists by an index from 0, and into text that is a JSON object or list.
A column whose name is exactly the path comes first.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from tunesmith.tasks.json_values import decode_json

_MAX_DEPTH = 4


class _Missing:
    """The type of MISSING."""


MISSING = _Missing()
"""Where a path leads if the row has no such cell."""
_CUT_SHORT = _Missing()
"""Where a path leads if a value on the way is null, or a list is too short."""


class InvalidJson(ValueError):
    """A text is not JSON, although a path or a list of messages needs it to be.

    Args:
        column: the column, or the path of the text in it.
    """

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"`{column}` is not JSON: {reason}")
        self.column = column
        self.reason = reason


def find_cell(row: Mapping[str, Any], path: str) -> Any:
    """Return the value of a cell; MISSING if the row has neither a column of that name nor such a value inside one.

    The value is None if a value on the way is null, or if a list is too short: the cell is then empty.

    Raises:
        InvalidJson: a value on the way is text that begins like an object or a list of JSON but is none.
    """
    found = _find(row, path)
    return None if found is _CUT_SHORT else found


def has_cell(row: Mapping[str, Any], path: str) -> bool:
    """Return whether a row shows that a cell exists; invalid JSON, null on the way and short lists do not show it."""
    try:
        return not isinstance(_find(row, path), _Missing)
    except InvalidJson:
        return False


def parse_json(text: str, column: str) -> Any:
    """Return the value of a text of JSON; raise InvalidJson if it is none."""
    value = _decode(text)
    if isinstance(value, InvalidJson):
        raise InvalidJson(column, value.reason)
    return value


def nested_paths(value: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the paths of a row's cells, with the first item of each list, outermost first at every branch."""
    value = _decode(value) if _is_nested_json(value) else value
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in pairs:
        path = f"{prefix}{key}"
        yield path
        if depth < _MAX_DEPTH:
            yield from nested_paths(item, f"{path}.", depth + 1)


def _find(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, MISSING or _CUT_SHORT."""
    if path in row or "." not in path:
        return row.get(path, MISSING)
    return _descend(row, tuple(path.split(".")), path)


def _descend(value: Any, parts: tuple[str, ...], path: str) -> Any:
    """Return the value to which the last `parts` of a path lead. Keys may have dots: the longest is tried first."""
    if not parts:
        return value
    if value is None:
        return _CUT_SHORT
    if _is_nested_json(value):
        value = parse_json(value, path.removesuffix("." + ".".join(parts)))
    if isinstance(value, Mapping):
        for count in range(len(parts), 0, -1):
            key = ".".join(parts[:count])
            if key in value and (found := _descend(value[key], parts[count:], path)) is not MISSING:
                return found
    if isinstance(value, list) and parts[0].isdecimal():
        index = int(parts[0])
        return _descend(value[index], parts[1:], path) if index < len(value) else _CUT_SHORT
    return MISSING


def _is_nested_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] in ("{", "[")


# The columns of a template may all be in one text.
@lru_cache(maxsize=32)
def _decode(text: str) -> Any:
    start = len(text) - len(text.lstrip())
    try:
        value, end = decode_json(text, start)
    except ValueError as error:
        return InvalidJson("", str(error))
    return InvalidJson("", f"text follows at character {end + 1}") if text[end:].strip() else value
