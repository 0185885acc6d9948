"""JSONL files: one JSON value per line, for results that are final and for logs that grow."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import write_chunks

# `json.dumps` would build a new encoder for every value.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_BLOCK_BYTES = 2**16


def json_line(value: Any) -> str:
    """Return one line of JSONL, with its line break. Raise ValueError for NaN and infinity, which JSON lacks."""
    return _encode(value) + "\n"


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Stream values to a file, one per line, and fsync it. The folder's manifest makes the file final."""
    write_chunks(path, (json_line(value).encode() for value in values))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the value of each line of a finished file; raise DamagedFile if a line is not JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _parse(line, f"{path}:{number}")


def whole_lines(path: Path) -> Iterator[str]:
    """Yield the complete lines of a log that another process may be writing; nothing if there is no file.

    Unlike `read_whole_lines` it never changes the file, and it leaves the parsing to the caller.
    """
    if path.exists():
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from (line for line in file if line.endswith("\n"))


def read_growing(path: Path) -> Iterator[Any]:
    """Yield the values of `whole_lines`; raise DamagedFile if a line is not JSON."""
    for number, line in enumerate(whole_lines(path), 1):
        yield _parse(line.encode(), f"{path}:{number}")


def read_whole_lines(path: Path) -> list[Any]:
    """Return the values of this process's own log, and cut off a last line that was only partly written.

    Raises:
        DamagedFile: another line is not JSON.
    """
    if not path.exists():
        return []
    cut_partial_line(path)
    # Not `splitlines`, which also splits at U+0085 and U+2028; JSON does not escape them.
    lines = path.read_bytes().split(b"\n")[:-1]
    hint = "the file is a log: move it away, and the run continues without its content"
    return [_parse(line, f"{path}:{number}", hint) for number, line in enumerate(lines, 1)]


def cut_partial_line(path: Path) -> None:
    """Cut off a last line without a line break: its writer was killed, or the disk was full."""
    end = path.stat().st_size
    with path.open("rb") as file:
        kept = end
        while kept:
            start = max(0, kept - _BLOCK_BYTES)
            file.seek(start)
            if (line_break := file.read(kept - start).rfind(b"\n")) >= 0:
                kept = start + line_break + 1
                break
            kept = start
    if kept != end:
        os.truncate(path, kept)


def _parse(line: bytes, where: str, hint: str | None = None) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise DamagedFile(f"is not readable JSON ({error})", where=where, hint=hint) from error
