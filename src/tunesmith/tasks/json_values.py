"""Decode JSON so that no value changes: numbers keep their notation, and repeated keys and NaN are refused."""

import json
import re
from collections import Counter
from typing import Any, NoReturn

_MAX_DIGITS = 4000  # Python refuses to convert more than 4,300


class JsonNumber(float):
    """A number from a JSON file that keeps its notation: `str` returns 12.50, 1E3 or -0 as in the file."""

    def __init__(self, text: str) -> None:
        """Parse a JSON number. One beyond the range of a float becomes infinite and keeps its digits."""
        self.text = text

    def __str__(self) -> str:
        return self.text


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"has the key {name!r} twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"contains {name}, which is not JSON (write null, or omit the key)")


def _parse_integer(digits: str) -> int | JsonNumber:
    """Return an int if `str` restores the same digits; `-0` and numbers too long for Python stay text."""
    if digits == "-0" or len(digits) > _MAX_DIGITS:
        return JsonNumber(digits)
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=JsonNumber, parse_int=_parse_integer
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_json(text: str, position: int = 0) -> tuple[Any, int]:
    """Return the JSON value at `position` and its end.

    Raises:
        JSONDecodeError: the text is not JSON.
        ValueError: a value cannot be represented; the message is a complete reason.
    """
    try:
        value, end = _DECODER.raw_decode(text, position)
        if _SURROGATE.search(text, position, end):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except UnicodeEncodeError as error:
        problem = "contains an unpaired surrogate (\\ud800 to \\udfff), which is not a character"
        raise ValueError(problem) from error
    return value, end
