r"""Read text files strictly: nothing is guessed, repaired or skipped, and what is wrong is told with its line.

Lines end at `\n` only, and are counted as an editor counts them. Everything here raises DataError; what the
file system and gzip raise becomes one in `wrap_read_errors`.
"""

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from tunesmith.core.errors import DataError

MAX_LINE_BYTES = 64 * 2**20  # far above any row; a gzip bomb or a binary file has lines without end
SHOWN_CHARACTERS = 80
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
def wrap_read_errors(path: Path, label: str) -> Iterator[None]:
    """Turn failures of the file system or of gzip into DataError; raise it too if the file changed on the way."""
    try:
        before = path.stat()
        yield
        after = path.stat()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=label) from error
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise DataError("changed while it was read", where=label, hint="run again when it is no longer written to")


def read_text_lines(path: Path, label: str) -> Iterator[tuple[int, str]]:
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


def shorten(text: str) -> str:
    """Return a text short enough for a message."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


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
