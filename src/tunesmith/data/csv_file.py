"""CSV and TSV files -> (line, cells), every cell the exact text of the file; malformed records are told, not mended."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tunesmith.core.errors import DataError
from tunesmith.data.text_file import MAX_LINE_BYTES, read_text_lines, shorten

_UNQUOTED = "; if the file never quotes cells, like many TSV files, write `quote: none` next to `file`"
_SEPARATORS = {",": ".csv", "\t": ".tsv", ";": "", "|": ""}


def read_csv_records(path: Path, label: str, separator: str, *, quoted: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the record starts, its cells), the header first; a blank line has no cells.

    Args:
        quoted: whether cells may be in quotes; if not, a quote is an ordinary character.

    Raises:
        DataError: see `read_text_lines`; names that repeat in the header, a record with more or fewer cells than it,
            a quote that is not closed, text after a closing quote, a bare carriage return.
    """
    header: list[str] | None = None
    empty = True
    for line, cells in _records(path, label, separator, quoted=quoted):
        if header is None:
            header = cells
            _check_header(header, label)
        elif cells:
            _check_cells(cells, header, f"{label}:{line}", separator)
            empty = False
        yield line, cells
    if empty:
        raise DataError("has a header but no rows", where=label)


def _records(path: Path, label: str, separator: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the record starts, its cells)."""
    # The limit is one number for the whole process, and its default of 128 KiB refuses long documents.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    record: list[str] = []  # the lines of the record being read, to find the quote that went wrong

    def lines() -> Iterator[str]:
        for _, line in read_text_lines(path, label):
            record.append(line)
            yield line

    reader = csv.reader(
        lines(), delimiter=separator, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
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
        raise DataError(f"the header has the column {shorten(repeated[0])!r} more than once", where=f"{label}:1")


def _check_cells(cells: list[str], header: list[str], where: str, separator: str) -> None:
    if len(cells) == len(header):
        return
    hint = 'a cell that holds the separator needs quotes: "like, this"' + _UNQUOTED
    likely = next((mark for mark in _SEPARATORS if mark != separator and mark in header[0]), None)
    if len(header) == 1 and likely is not None:
        ending = _SEPARATORS[likely]
        shown = "a tab" if likely == "\t" else f"`{likely}`"
        cure = f"rename the file to {ending}" if ending else "save the file with commas, or with tabs as .tsv"
        hint = f"the separator seems to be {shown}: {cure}"
    problem = f"has {len(cells)} cell{'s'[: len(cells) > 1]}, but the header names {len(header)}"
    raise DataError(problem, where=where, hint=hint)


def _refuse_record(record: str, start: int, separator: str, reason: str, label: str) -> NoReturn:
    last = start + record.removesuffix("\n").count("\n")
    if reason.startswith("new-line"):
        _refuse_carriage_return(label, last)
    opened = start + _line_of_open_quote(record, separator)
    where = f"{label}:{opened}"
    if reason.startswith("unexpected end"):
        raise DataError(
            "the quote that opens here is never closed", where=where, hint='inside quotes, write " as ""' + _UNQUOTED
        )
    if reason.startswith("field larger"):
        problem = f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB"
        raise DataError(problem, where=where, hint="is the quote that opens here never closed?")
    problem = f"the quote that opens here closes in line {last}, and text follows without a separator"
    hint = 'a quote is missing, or one inside a cell is not doubled: write " as ""' + _UNQUOTED
    raise DataError(problem, where=where, hint=hint)


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
