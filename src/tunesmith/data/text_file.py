r"""Read text files strictly: nothing is guessed, repaired or skipped, and every error names its line.

Lines end at `\n` only, so their numbers are those of an editor. All errors are DataError; `wrap_read_errors` converts
those of the file system and of decompression.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import DataError

MAX_LINE_BYTES = 64 * 2**20  # far above any row; a gzip bomb or a binary file has endless lines
SHOWN_CHARACTERS = 80
# The longest marks first: the byte order mark of UTF-32 begins with that of UTF-16.
_NOT_UTF8 = {
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}
_NOT_TEXT = {
    b"\x1f\x8b": ("is compressed with gzip", "add .gz to its name"),
    b"\x28\xb5\x2f\xfd": ("is compressed with Zstandard", "add .zst to its name"),
    b"PK\x03\x04": ("is a ZIP archive or an office document", "unpack it, or save it as CSV"),
    b"PAR1": ("is a Parquet file", "rename it to .parquet"),
    b"ARROW1": ("is an Arrow file", "rename it to .arrow"),
}


@contextlib.contextmanager
def wrap_read_errors(path: Path, label: str) -> Iterator[None]:
    """Turn errors of reading and of decompression into DataError; also raise it if the file changes in the block."""
    try:
        before = path.stat()
        yield
        after = path.stat()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read ({reason})", where=label, code="unreadable") from error
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        hint = "run again when no program writes to it"
        raise DataError("changed while it was read", where=label, hint=hint, code="changed-file")


def read_text_lines(path: Path, label: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a UTF-8 file, line end included; `.gz` and `.zst` are decompressed.

    A byte order mark is removed. Memory is bounded by the longest line.

    Raises:
        DataError: the file is empty or not UTF-8, has a NUL byte, or a line longer than MAX_LINE_BYTES.
    """
    with _open(path) as file:
        offset = 0
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if number == 1:
                _check_start(raw, label)
            if len(raw) > MAX_LINE_BYTES:
                problem = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
                raise DataError(problem, where=f"{label}:{number}", code="line-too-long")
            line = _decode(raw, offset, label, number)
            yield number, line.removeprefix("\ufeff") if number == 1 else line
            offset += len(raw)
        if offset == 0:
            raise DataError("is empty", where=label, code="no-rows")


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def shorten(text: str) -> str:
    """Return a text, truncated if it is too long for a message."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _check_start(start: bytes, label: str) -> None:
    """Raise DataError if a file starts with the mark of another encoding or format."""
    for mark, name in _NOT_UTF8.items():
        if start.startswith(mark):
            hint = f"convert it: iconv -f {name} -t UTF-8 OLD > NEW"
            problem = f"is {name} text (it starts with a byte order mark), not UTF-8"
            raise DataError(problem, where=label, hint=hint, code="encoding")
    for mark, (problem, hint) in _NOT_TEXT.items():
        if start.startswith(mark):
            raise DataError(f"{problem}, not text", where=label, hint=hint, code="unsupported-format")


def _decode(raw: bytes, offset: int, label: str, number: int) -> str:
    where = f"{label}:{number}"
    if (nul := raw.find(b"\0")) >= 0:
        hint = "the file is damaged, binary, or UTF-16; convert UTF-16 with: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        raise DataError(f"has a NUL byte at byte offset {offset + nul}", where=where, hint=hint, code="encoding")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {offset + error.start}"
        hint = "convert it from its encoding, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        raise DataError(problem, where=where, hint=hint, code="encoding") from error
