"""Find the local files of a source, and read their rows.

Our own strict readers read CSV and JSON, because they report lines and keep values exact. The `datasets` library reads
Parquet and Arrow, streaming, so that nothing is cached and memory stays bounded.
"""

import contextlib
import glob
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError, TunesmithError
from tunesmith.core.files import digest_file
from tunesmith.core.suggest import closest
from tunesmith.data.csv_file import read_csv_rows
from tunesmith.data.json_file import read_json_lines, read_json_rows
from tunesmith.data.text_file import shorten, wrap_read_errors
from tunesmith.recipe.data_source import FileSource

_CELLS = (".csv", ".tsv")
_TEXT = (*_CELLS, ".json", ".jsonl")
_FORMATS = (*_TEXT, ".parquet", ".arrow")
_SUPPORTED = f"supported are {', '.join(_FORMATS)}, and {', '.join(_TEXT)} with .gz"
_UNSUPPORTED = {
    ".pkl": "reading a pickle can run code, so pickles are not supported",
    ".pickle": "reading a pickle can run code, so pickles are not supported",
    ".zip": "unpack it first",
    ".tar": "unpack it first",
    ".xlsx": "save it as CSV",
    ".txt": "convert it to JSONL: one object per line, with the text under a name",
}
_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An existing file of a supported format.

    Attributes:
        label: its name in errors and in the ledger.
        format: the extension without `.gz`, such as `.csv`.
        quoted: whether cells of CSV may be in quotes.
    """

    path: Path
    label: str
    format: str
    quoted: bool


def resolve_files(source: FileSource, folder: Path) -> list[LocalFile]:
    """Return the files of a source.

    Raises:
        DataError: a file does not exist, cannot be read, or has an unsupported format.
        RecipeError: `quote` has no effect on a file.
    """
    files = [_check_file(name, folder, quoted=source.quote == "double") for name in file_names(source)]
    if source.quote != "double" and (others := [file.label for file in files if file.format not in _CELLS]):
        raise RecipeError("`quote` applies to CSV and TSV only", where=others[0], hint="remove it", code="no-effect")
    return files


def file_names(source: FileSource) -> Sequence[str]:
    """Return the names of a source's files, as they are in the recipe."""
    return [source.file] if isinstance(source.file, str) else source.file


def _check_file(name: str, folder: Path, *, quoted: bool) -> LocalFile:
    """Return the file of that name; raise DataError unless it is a regular file of a supported format."""
    path = resolve_path(name, folder)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError("there is no such file", where=name, hint=_missing_hint(path), code="not-found") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=name, code="unreadable") from error
    format_ = file_format(path)
    if stat.S_ISDIR(mode):
        inside = ", ".join(f"{name}/{file.name}" for file in visible_files(path, "*") if file_format(file))
        listed = shorten(inside) or "none has a supported format"
        hint = f"name its files ({listed}), or write `hub: {name}` to read all"
        raise DataError("is a folder, not a file", where=name, hint=hint, code="wrong-path")
    if not stat.S_ISREG(mode):
        raise DataError("is not a regular file", where=name, code="wrong-path")
    if format_ is None:
        problem = f"has an unsupported format ({path.suffix or 'no extension'})"
        reason = _UNSUPPORTED.get(path.suffix.lower())
        hint = f"{reason}; {_SUPPORTED}" if reason else _SUPPORTED
        raise DataError(problem, where=name, hint=hint, code="unsupported-format")
    return LocalFile(path, source_label(name), format_, quoted)


def source_label(name: str) -> str:
    """Return the name of a file or folder for a run folder, which must not contain absolute paths."""
    return Path(name).name if os.path.isabs(os.path.expanduser(name)) else name


def resolve_path(name: str, folder: Path) -> Path:
    """Return the path of a name in a recipe in `folder`."""
    return folder / os.path.expanduser(name)  # Path.expanduser raises for users that do not exist


def file_format(path: Path) -> str | None:
    """Return the format of a file by its name, such as `.csv`; None if it is not supported."""
    name = path.name.lower()
    extension = Path(name.removesuffix(".gz")).suffix
    return extension if extension in (_TEXT if name.endswith(".gz") else _FORMATS) else None


def _missing_hint(path: Path) -> str | None:
    if any(mark in path.name or mark in path.parent.name for mark in "*?["):
        matches = sorted(os.path.relpath(match, path.parent) for match in glob.glob(str(path), recursive=True))
        listed = f" (it matches {len(matches)}: {shorten(', '.join(matches))})" if matches else ""
        return f"patterns are not supported: list the files, file: [a.jsonl, b.jsonl]{listed}"
    if not path.parent.is_dir():
        return "its folder does not exist either; paths are relative to the recipe"
    names = [file.name for file in visible_files(path.parent, "*")]
    if near := closest(path.name, names, cutoff=0.5):
        return f"did you mean {near}?"
    readable = [name for name in names if file_format(Path(name))]
    return f"there are: {shorten(', '.join(readable))}" if readable else "paths are relative to the recipe"


def visible_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files of a folder in a fixed order, without hidden files, which `datasets` skips too."""
    files = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


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
        if file.format in _CELLS:
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
