r"""Read text files strictly: nothing is guessed, repaired or skipped, and what is wrong is told with its line.

Lines end at `\n` only, and are counted as an editor counts them. Everything here raises DataError; what the
file system and gzip raise becomes one in `read_errors_told`.
"""

import codecs
import contextlib
import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.core.errors import DataError

MAX_LINE_BYTES = 64 * 2**20  # far above any row; a gzip bomb or a binary file has lines without end
MAX_DOCUMENT_CHARACTERS = 2**30  # a JSON list has to be read whole
_SHOWN = 80
# The longest mark first: that of UTF-32 begins with that of UTF-16.
_NOT_UTF8 = {
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}
_NOT_TEXT = {
    b"\x1f\x8b": ("is compressed with gzip", "add .gz to its name"),
    b"PK\x03\x04": ("is a ZIP archive or an office document", "unpack it, or save it as CSV"),
    b"PAR1": ("is a Parquet file", "rename it to .parquet"),
    b"ARROW1": ("is an Arrow file", "rename it to .arrow"),
}


@contextlib.contextmanager
def read_errors_told(path: Path, label: str) -> Iterator[None]:
    """Turn failures of the file system or of gzip into DataError; raise it too if the file changed on the way."""
    try:
        before = path.stat()
        yield
        after = path.stat()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=label) from error
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise DataError("changed while it was read", where=label, hint="run again when it is no longer written to")


def text_lines(path: Path, label: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line with its line end) of a UTF-8 file; `.gz` is decompressed on the way.

    A byte order mark is taken off. Memory is bounded by the longest line.

    Raises:
        DataError: empty, not UTF-8, a NUL byte, an endless line.
    """
    with _open(path) as file:
        offset = 0
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                _refuse_other_formats(raw, label)
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", where=f"{label}:{number}")
            line = _decoded(raw, offset, label, number)
            yield number, line.removeprefix("\ufeff") if number == 1 else line
            offset += len(raw)
        if offset == 0:
            raise DataError("is empty", where=label)


def json_lines(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a JSONL file; blank lines are no rows.

    The json module reads it and not `datasets`: Arrow gives every row of a batch the same columns and types, so keys
    a row does not have would appear as None and numbers could become text, and the lines would be lost.

    Raises:
        DataError: see `text_lines`; a line that is not exactly one JSON object, or not representable exactly.
    """
    for number, line in text_lines(path, label):
        if line.isspace() or not line:
            continue
        yield number, _one_object(line, number, label)


def json_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a `.json` file: a list of objects, or JSON lines, which `datasets` and pandas write so.

    Raises:
        DataError: see `json_lines`; one object instead of a list, a list that is not closed, text after the list.
    """
    opening = (line.strip() for _, line in text_lines(path, label) if not line.isspace())
    first, second = next(opening, ""), next(opening, None)
    if first and first[0] != "[" and second is not None and _is_whole(first):
        yield from json_lines(path, label)
        return
    text = _whole_text(path, label)
    if first.startswith("["):
        yield from _list_items(text, label)
    elif first:
        value, _ = _decode(text, _skip_space(text, 0), 1, label)
        _refuse_single(value, label)


def csv_records(path: Path, label: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the record starts, its cells), the header first; a blank line has no cells.

    Raises:
        DataError: see `text_lines`; names that repeat in the header, a record with more or fewer cells than it,
            a quote that is not closed, text after a closing quote, a bare carriage return.
    """
    header: list[str] | None = None
    empty = True
    for line, cells in _records(path, label, separator):
        if header is None:
            header = cells
            _check_header(header, label)
        elif cells:
            _check_cells(cells, header, f"{label}:{line}")
            empty = False
        yield line, cells
    if empty:
        raise DataError("has a header but no rows", where=label)


def cut(text: str) -> str:
    """Return a text short enough for a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _refuse_other_formats(start: bytes, label: str) -> None:
    for mark, name in _NOT_UTF8.items():
        if start.startswith(mark):
            hint = f"convert it: iconv -f {name} -t UTF-8 OLD > NEW"
            raise DataError(f"is {name} text (it starts with a byte order mark); UTF-8 is read", where=label, hint=hint)
    for mark, (problem, hint) in _NOT_TEXT.items():
        if start.startswith(mark):
            raise DataError(f"{problem}, not text", where=label, hint=hint)


def _decoded(raw: bytes, offset: int, label: str, number: int) -> str:
    where = f"{label}:{number}"
    if (nul := raw.find(b"\0")) >= 0:
        hint = "the file is damaged, binary, or UTF-16 text; for the latter: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        raise DataError(f"holds a NUL byte at byte offset {offset + nul}", where=where, hint=hint)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {offset + error.start}"
        hint = "convert it with the encoding it is in, such as: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        raise DataError(problem, where=where, hint=hint) from error


# --- JSON ---


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"has the key {name!r} twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which JSON does not have (write null, or leave the key out)")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"holds the number {cut(digits)}, which is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
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
        elif "integer string" in problem:
            problem = "holds a number with too many digits"
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
    for _, line in text_lines(path, label):
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
    left = max(0, min(position - start - _SHOWN // 2, len(shown) - _SHOWN))
    problem = f"is not valid JSON: {message} at column {position - start + 1}: {shown[left : left + _SHOWN]}"
    hint = "it is the last line and has no line end: the file was probably cut off" if ends_early and end < 0 else None
    raise DataError(problem, where=f"{label}:{first + text.count(chr(10), 0, position)}", hint=hint)


# --- CSV ---


def _records(path: Path, label: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the record starts, its cells)."""
    # The limit is one number for the whole process, and its default of 128 KiB refuses long documents.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    record: list[str] = []  # the lines of the record being read, to find the quote that went wrong

    def lines() -> Iterator[str]:
        for _, line in text_lines(path, label):
            record.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    while True:
        start = reader.line_num + 1
        record.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            _refuse_record("".join(record), start, separator, str(error), label)
        if cells is None:
            return
        if record[-1].removesuffix("\n").removesuffix("\r").endswith("\r"):
            _refuse_carriage_return(label, start + len(record) - 1)
        yield start, cells


def _check_header(header: list[str], label: str) -> None:
    if not header:
        raise DataError("the first line is blank; it must name the columns", where=f"{label}:1")
    repeated = [name for name, times in Counter(header).items() if times > 1]
    if repeated:
        raise DataError(f"the header has the column {cut(repeated[0])!r} more than once", where=f"{label}:1")


def _check_cells(cells: list[str], header: list[str], where: str) -> None:
    if len(cells) != len(header):
        problem = f"has {len(cells)} cell{'s'[: len(cells) > 1]}, but the header names {len(header)}"
        raise DataError(problem, where=where, hint='a cell that holds the separator needs quotes: "like, this"')


def _refuse_record(record: str, start: int, separator: str, reason: str, label: str) -> NoReturn:
    last = start + record.removesuffix("\n").count("\n")
    if reason.startswith("new-line"):
        _refuse_carriage_return(label, last)
    opened = start + _line_of_open_quote(record, separator)
    where = f"{label}:{opened}"
    if reason.startswith("unexpected end"):
        raise DataError("the quote that opens here is never closed", where=where, hint='inside quotes, write " as ""')
    if reason.startswith("field larger"):
        problem = f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB"
        raise DataError(problem, where=where, hint="is the quote that opens here never closed?")
    problem = f"the quote that opens here closes in line {last}, and text follows without a separator"
    raise DataError(problem, where=where, hint='a quote is missing, or one inside a cell is not doubled: write " as ""')


def _refuse_carriage_return(label: str, line: int) -> NoReturn:
    hint = r"convert the line ends: tr '\r' '\n' < OLD > NEW; or quote the cell that holds it"
    raise DataError("holds a bare carriage return outside quotes", where=f"{label}:{line}", hint=hint)


def _line_of_open_quote(record: str, separator: str) -> int:
    """Return how many lines into the record the quote opens that is wrong: not closed, or followed by text."""
    opened, position, cell_starts = 0, 0, True
    while position < len(record):
        if not (cell_starts and record[position] == '"'):
            cell_starts = record[position] in (separator, "\n")
            position += 1
            continue
        opened = position
        position = record.find('"', position + 1)
        while position >= 0 and record[position + 1 : position + 2] == '"':
            position = record.find('"', position + 2)
        if position < 0 or record[position + 1 : position + 2] not in (separator, "\r", "\n", ""):
            break
        position, cell_starts = position + 1, False
    return record.count("\n", 0, opened)
