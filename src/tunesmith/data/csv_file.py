"""Read CSV and TSV files strictly: cells are the exact text in the file, and malformed records are errors."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tunesmith.core.errors import DataError
from tunesmith.data.text_file import MAX_LINE_BYTES, read_text_lines, shorten

_UNQUOTED = "; if the file has no quoted cells, like many TSV files, write `quote: none` next to `file`"
_SEPARATORS = {",": ".csv", "\t": ".tsv", ";": "", "|": ""}


def read_csv_rows(path: Path, label: str, separator: str, *, quoted: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the first line and the cells of each row by column; blank lines are skipped.

    Args:
        quoted: whether cells may be in quotes; if not, a quote is an ordinary character.

    Raises:
        DataError: see `read_text_lines`; the header repeats a name, a record has more or fewer cells than the header,
            a quote is never closed or text follows it, or a carriage return is not followed by a line feed.
    """
    records = _records(path, label, separator, quoted=quoted)
    _, header = next(records)
    _check_header(header, label)
    empty = True
    for line, cells in records:
        if cells:
            _check_cells(cells, header, f"{label}:{line}", separator)
            empty = False
            yield line, dict(zip(header, cells, strict=True))
    if empty:
        raise DataError("has a header but no rows", where=label, code="no-rows")


def _records(path: Path, label: str, separator: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of each record."""
    # The limit is global to the process, and its default of 128 KiB is too low for long documents.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    record: list[str] = []  # the lines of the current record, to find the quote that is wrong

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
            _raise_record_error("".join(record), start, separator, str(error), label)
        if cells is None:
            return
        if record[-1].removesuffix("\n").removesuffix("\r").endswith("\r"):
            _raise_carriage_return_error(label, start + len(record) - 1)
        yield start, cells


def _check_header(header: list[str], label: str) -> None:
    if not header:
        raise DataError("the first line is blank; it must name the columns", where=f"{label}:1", code="invalid-csv")
    repeated = [name for name, times in Counter(header).items() if times > 1]
    if repeated:
        problem = f"the header has the column {shorten(repeated[0])!r} more than once"
        raise DataError(problem, where=f"{label}:1", code="duplicate-column")


def _check_cells(cells: list[str], header: list[str], where: str, separator: str) -> None:
    if len(cells) == len(header):
        return
    hint = 'a cell that contains the separator needs quotes: "like, this"' + _UNQUOTED
    likely_separator = next((mark for mark in _SEPARATORS if mark != separator and mark in header[0]), None)
    if len(header) == 1 and likely_separator is not None:
        extension = _SEPARATORS[likely_separator]
        shown = "a tab" if likely_separator == "\t" else f"`{likely_separator}`"
        remedy = f"rename the file to {extension}" if extension else "save the file with commas, or with tabs as .tsv"
        hint = f"the separator seems to be {shown}: {remedy}"
    problem = f"has {len(cells)} cell{'s'[: len(cells) > 1]}, but the header names {len(header)}"
    raise DataError(problem, where=where, hint=hint, code="invalid-csv")


def _raise_record_error(record: str, start: int, separator: str, reason: str, label: str) -> NoReturn:
    """Raise DataError for a record that the csv module rejected with `reason`."""
    last = start + record.removesuffix("\n").count("\n")
    if reason.startswith("new-line"):
        _raise_carriage_return_error(label, last)
    where = f"{label}:{start + _line_of_open_quote(record, separator)}"
    if reason.startswith("field larger"):
        problem = f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB"
        raise DataError(problem, where=where, hint="is the quote that opens here never closed?", code="line-too-long")
    problem, hint = "the quote that opens here is never closed", "inside quotes"
    if not reason.startswith("unexpected end"):
        problem = f"the quote that opens here closes on line {last}, and text follows without a separator"
        hint = "a quote is missing, or one inside a cell is not doubled"
    raise DataError(problem, where=where, hint=f'{hint}: write " as ""{_UNQUOTED}', code="invalid-csv")


def _raise_carriage_return_error(label: str, line: int) -> NoReturn:
    hint = r"convert the line ends: tr '\r' '\n' < OLD > NEW; or quote the cell that contains it"
    problem = "has a carriage return without a line feed, outside quotes"
    raise DataError(problem, where=f"{label}:{line}", hint=hint, code="invalid-csv")


def _line_of_open_quote(record: str, separator: str) -> int:
    """Return the line, from 0, on which the quote opens that is never closed or that is closed before other text."""
    quoted = rf'"[^"]*+(?:""[^"]*+)*+"(?![^{separator}\r\n])'
    well_formed_cells = re.compile(rf'(?:(?:{quoted}|(?!"))[^{separator}\n]*+[{separator}\n])*+')
    match = well_formed_cells.match(record)
    return record.count("\n", 0, match.end()) if match else 0
