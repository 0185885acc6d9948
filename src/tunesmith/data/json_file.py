"""JSON and JSONL files -> (line, object), exactly as written; what is wrong is told with its line and column."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.core.errors import DataError
from tunesmith.data.text_file import SHOWN_CHARACTERS, read_text_lines
from tunesmith.tasks.base import JsonNumber

_MOST_DIGITS = 4000  # Python refuses to convert more than 4,300
MAX_DOCUMENT_CHARACTERS = 2**30  # a JSON list has to be read whole


def read_json_lines(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a JSONL file; blank lines are no rows.

    The json module reads it and not `datasets`: Arrow gives every row of a batch the same columns and types, so keys
    a row does not have would appear as None and numbers could become text, and the lines would be lost.

    Raises:
        DataError: see `read_text_lines`; a line that is not exactly one JSON object, or not representable exactly.
    """
    is_first_line = True
    for number, line in read_text_lines(path, label):
        if line.isspace() or not line:
            continue
        try:
            value = _one_object(line, number, label)
        except DataError as error:
            if is_first_line and line.lstrip().startswith("["):
                hint = "this looks like one JSON list, not one object a line: let the name end in .json"
                raise DataError(error.message, where=error.where, hint=hint) from error
            raise
        is_first_line = False
        yield number, value


def read_json_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a `.json` file: a list of objects, or JSON lines, which `datasets` and pandas write so.

    Raises:
        DataError: see `read_json_lines`; one object instead of a list, a list that is not closed, text after the list.
    """
    opening = (line.strip() for _, line in read_text_lines(path, label) if not line.isspace())
    first, second = next(opening, ""), next(opening, None)
    if first and first[0] != "[" and second is not None and _is_whole(first):
        yield from read_json_lines(path, label)
        return
    text = _whole_text(path, label)
    if first.startswith("["):
        yield from _list_items(text, label)
    elif first:
        value, _ = _decode(text, _skip_space(text, 0), 1, label)
        _refuse_single(value, label)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"has the key {name!r} twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which JSON does not have (write null, or leave the key out)")


def _whole_number(digits: str) -> int | JsonNumber:
    """Return an integer if `str` gives back its digits: not for `-0`, nor for more digits than Python converts."""
    if digits == "-0" or len(digits) > _MOST_DIGITS:
        return JsonNumber(digits)
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=JsonNumber, parse_int=_whole_number
)
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _decode(text: str, position: int, first: int, label: str) -> tuple[Any, int]:
    """Return the JSON value at `position` and where it ends; `first` is the number of the text's first line."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        if _SURROGATE.search(text, position, end):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        _refuse_json(text, error.pos, first, error.msg, label)
    except (ValueError, RecursionError) as error:
        problem = str(error)  # the hooks above say what they mean, the interpreter does not
        if isinstance(error, RecursionError):
            problem = "is nested too deeply"
        elif isinstance(error, UnicodeEncodeError):
            problem = "holds half of a surrogate pair (a \\ud800 to \\udfff without its partner), which is no character"
        raise DataError(problem, where=f"{label}:{first + text.count(chr(10), 0, position)}") from error
    return value, end


def _one_object(line: str, number: int, label: str) -> dict[str, Any]:
    value, end = _decode(line, _skip_space(line, 0), number, label)
    end = _skip_space(line, end)
    if end != len(line):
        _refuse_json(line, end, number, "Extra data", label)
    return _checked_object(value, f"{label}:{number}")


def _checked_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")
        raise DataError(f"is {kind}, not an object with a name for every value", where=where)
    return value


def _list_items(text: str, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a text that starts with `[`."""
    position = _skip_space(text, 0)
    line, counted = 1, 0
    mark = text[position]
    while mark != "]":
        position = _skip_space(text, position + 1)
        line, counted = line + text.count("\n", counted, position), position
        if mark == "[" and text[position : position + 1] == "]":
            break
        value, position = _decode(text, position, 1, label)
        yield line, _checked_object(value, f"{label}:{line}")
        position = _skip_space(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            message = "Expecting ',' or ']'" if mark else "the list is never closed; is the file cut off?"
            _refuse_json(text, position, 1, message, label)
    rest = _skip_space(text, position + 1)
    if rest != len(text):
        _refuse_json(text, rest, 1, "Extra data", label)


def _is_whole(line: str) -> bool:
    """Say whether a line starts with a complete JSON value: then the file is JSON lines, good or bad."""
    try:
        json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole_text(path: Path, label: str) -> str:
    parts, size = [], 0
    for _, line in read_text_lines(path, label):
        parts.append(line)
        size += len(line)
        if size > MAX_DOCUMENT_CHARACTERS:
            raise DataError("is too large for a JSON list", where=label, hint="write it as JSONL: one object a line")
    return "".join(parts)


def _refuse_single(value: Any, label: str) -> NoReturn:
    _checked_object(value, label)
    lists = [name for name, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    found = f"the rows seem to be under {lists[0]!r}: " if lists else ""
    hint = f"{found}write a list of objects, or one object a line"
    raise DataError("is one object, not a list of rows", where=label, hint=hint)


def _refuse_json(text: str, position: int, first: int, message: str, label: str) -> NoReturn:
    """Raise DataError for what is wrong at `position`; `first` is the number of the text's first line."""
    ends_early = position >= len(text.rstrip()) or message.startswith("Unterminated")
    position = min(position, len(text.rstrip()))  # not the empty line behind the last one
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    shown = text[start : end if end >= 0 else len(text)].rstrip("\r")
    # Of a long line the part around the error is shown, not its start.
    left = max(0, min(position - start - SHOWN_CHARACTERS // 2, len(shown) - SHOWN_CHARACTERS))
    problem = f"is not valid JSON: {message} at column {position - start + 1}: {shown[left : left + SHOWN_CHARACTERS]}"
    hint = "it is the last line and has no line end: the file was probably cut off" if ends_early and end < 0 else None
    raise DataError(problem, where=f"{label}:{first + text.count(chr(10), 0, position)}", hint=hint)
