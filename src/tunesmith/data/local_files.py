"""Read the rows of a local file.

Our own strict readers read CSV and JSON, because they report lines and keep values exact. The `datasets` library reads
Parquet and Arrow, streaming, so that nothing is cached and memory stays bounded.
"""

import contextlib
import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, TunesmithError
from tunesmith.core.files import digest_file
from tunesmith.data.csv_file import read_csv_rows
from tunesmith.data.find_files import CELLS, LocalFile, visible_files
from tunesmith.data.json_file import read_json_lines, read_json_rows
from tunesmith.data.text_file import wrap_read_errors

_BATCH_ROWS = 1000


def digest_source_file(path: Path) -> str:
    """Return the digest of a file; raise DataError if it cannot be read, or changes while it is read."""
    with wrap_read_errors(path, str(path)):
        return digest_file(path)


def digest_folder(folder: Path) -> dict[str, str]:
    """Return the digest of each visible file by its path in the folder; raise DataError if one cannot be read."""
    return {path.relative_to(folder).as_posix(): digest_source_file(path) for path in visible_files(folder)}


def read_file_rows(file: LocalFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the location and the values of every row of a file; cells of CSV are the exact text in the file."""
    with wrap_read_errors(file.path, file.label):
        if file.format in CELLS:
            separator = "," if file.format == ".csv" else "\t"
            for line, cells in read_csv_rows(file.path, file.label, separator, quoted=file.quoted):
                yield f"{file.label}:{line}", cells
        elif file.format in (".json", ".jsonl"):
            read = read_json_lines if file.format == ".jsonl" else read_json_rows
            for line, values in read(file.path, file.label):
                yield f"{file.label}:{line}", values
        else:
            if file.path.stat().st_size == 0:
                raise DataError("is empty", where=file.label, code="no-rows")
            with wrap_library_errors(file.label):
                for number, values in enumerate(_open_stream(file), 1):
                    yield f"{file.label} row {number}", dict(values)


def _open_stream(file: LocalFile) -> Any:
    """Return a Parquet or Arrow file as a streaming dataset."""
    from datasets import load_dataset

    builder = file.format.removeprefix(".")
    # The default batch of Parquet is a whole row group, which can be the whole file.
    options = {"batch_size": _BATCH_ROWS} if builder == "parquet" else {}
    # The builders log the errors that they raise; we report them once.
    logging.getLogger(f"datasets.packaged_modules.{builder}.{builder}").setLevel(logging.CRITICAL)
    name = glob.escape(str(file.path.absolute()))
    return load_dataset(builder, data_files=name, split="train", streaming=True, **options)


@contextlib.contextmanager
def wrap_library_errors(where: str) -> Iterator[None]:
    """Turn the errors of `datasets` and of the libraries below it into DataError."""
    try:
        yield
    except (TunesmithError, MemoryError):
        raise
    except Exception as error:  # those of datasets, pandas, pyarrow and the hub have no common base
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"cannot be read ({reason[:300]})", where=where, code="unreadable") from error
