"""Read JSON and JSONL files strictly: values stay exactly as written, and every error names its line and column."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.core.errors import DataError
from tunesmith.data.text_file import SHOWN_CHARACTERS, read_text_lines
from tunesmith.tasks.json_values import decode_json

MAX_DOCUMENT_CHARACTERS = 2**30  # a JSON list is read as a whole


def read_json_lines(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each row of a JSONL file; blank lines are skipped.

    The json module reads the file instead of `datasets`, because Arrow gives every row of a batch the same columns and
    types: absent keys would become None, numbers could become text, and line numbers would be lost.

    Raises:
        DataError: see `read_text_lines`; a line is not exactly one JSON object, or cannot be represented exactly.
    """
    is_first_line = True
    for number, line in read_text_lines(path, label):
        if line.isspace() or not line:
            continue
        try:
            value = _parse_line(line, number, label)
        except DataError as error:
            if is_first_line and line.lstrip().startswith("["):
                error.hint = "this looks like one JSON list instead of one object per line: rename the file to .json"
            raise
        is_first_line = False
        yield number, value


def read_json_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each row of a `.json` file.

    The file is a list of objects, or JSON lines, because `datasets` and pandas write these to `.json` files too.

    Raises:
        DataError: see `read_json_lines`; the file is one object, the list is never closed, or text follows the list.
    """
    nonblank = (line.strip() for _, line in read_text_lines(path, label) if not line.isspace())
    first, second = next(nonblank, ""), next(nonblank, None)
    if first and first[0] != "[" and second is not None and _is_complete(first):
        yield from read_json_lines(path, label)
        return
    text = _read_all(path, label)
    if first.startswith("["):
        yield from _list_items(text, label)
    elif first:
        value, _ = _decode(text, _skip_space(text, 0), 1, label)
        _raise_single_value_error(value, label)


_SPACE = re.compile(r"[ \t\n\r]*")


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _decode(text: str, position: int, first_line: int, label: str) -> tuple[Any, int]:
    """Return the JSON value at `position` and its end; `first_line` is the line number of the text's start."""
    try:
        value, end = decode_json(text, position)
    except json.JSONDecodeError as error:
        _raise_json_error(text, error.pos, first_line, error.msg, label)
    except ValueError as error:
        where = f"{label}:{first_line + text.count(chr(10), 0, position)}"
        raise DataError(str(error), where=where, code="invalid-json") from error
    return value, end


def _parse_line(line: str, number: int, label: str) -> dict[str, Any]:
    value, end = _decode(line, _skip_space(line, 0), number, label)
    end = _skip_space(line, end)
    if end != len(line):
        _raise_json_error(line, end, number, "Extra data", label)
    return _check_object(value, f"{label}:{number}")


def _check_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
        raise DataError(f"is {kind}, not an object", where=where, code="not-an-object")
    return value


def _list_items(text: str, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each item of a text that starts with `[`."""
    position = _skip_space(text, 0)
    line, counted = 1, 0
    mark = text[position]
    while mark != "]":
        position = _skip_space(text, position + 1)
        line, counted = line + text.count("\n", counted, position), position
        if mark == "[" and text[position : position + 1] == "]":
            break
        value, position = _decode(text, position, 1, label)
        yield line, _check_object(value, f"{label}:{line}")
        position = _skip_space(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            message = "Expecting ',' or ']'" if mark else "the list is never closed; is the file cut off?"
            _raise_json_error(text, position, 1, message, label)
    rest = _skip_space(text, position + 1)
    if rest != len(text):
        _raise_json_error(text, rest, 1, "Extra data", label)


def _is_complete(line: str) -> bool:
    """Return whether a line starts with a complete JSON value. If so, the file is JSON lines, valid or not."""
    try:
        json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_all(path: Path, label: str) -> str:
    parts, size = [], 0
    for _, line in read_text_lines(path, label):
        parts.append(line)
        size += len(line)
        if size > MAX_DOCUMENT_CHARACTERS:
            hint = "write it as JSONL: one object per line"
            raise DataError("is too large for a JSON list", where=label, hint=hint, code="too-large")
    return "".join(parts)


def _raise_single_value_error(value: Any, label: str) -> NoReturn:
    _check_object(value, label)
    lists = [name for name, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    rows_hint = f"the rows seem to be under {lists[0]!r}: " if lists else ""
    hint = f"{rows_hint}write a list of objects, or one object per line"
    raise DataError("is one object, not a list of rows", where=label, hint=hint, code="not-an-object")


def _raise_json_error(text: str, position: int, first_line: int, message: str, label: str) -> NoReturn:
    """Raise DataError for the mistake at `position`; `first_line` is the line number of the text's start."""
    ends_early = position >= len(text.rstrip()) or message.startswith("Unterminated")
    position = min(position, len(text.rstrip()))  # not the empty line after the last one
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    shown = text[start : end if end >= 0 else len(text)].rstrip("\r")
    # The message shows the part of a long line that is around the error.
    begin = max(0, min(position - start - SHOWN_CHARACTERS // 2, len(shown) - SHOWN_CHARACTERS))
    excerpt = shown[begin : begin + SHOWN_CHARACTERS]
    problem = f"is not valid JSON: {message} at column {position - start + 1}: {excerpt}"
    is_cut_off = ends_early and end < 0
    hint = "it is the last line and has no line end: the file was probably cut off" if is_cut_off else None
    where = f"{label}:{first_line + text.count(chr(10), 0, position)}"
    raise DataError(problem, where=where, hint=hint, code="invalid-json")
