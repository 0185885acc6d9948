"""Local files: which a source names, whether they can be read at all, and their rows with where each stands.

CSV and JSON are read by our own strict readers, because they know lines and change nothing; Parquet and Arrow by the
`datasets` library, streaming, so that nothing is cached and memory stays bounded.
"""

import contextlib
import glob
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError, TunesmithError
from tunesmith.core.files import digest_file
from tunesmith.core.suggest import closest
from tunesmith.data.csv_file import read_csv_records
from tunesmith.data.json_file import read_json_lines, read_json_rows
from tunesmith.data.text_file import shorten
from tunesmith.recipe.data_source import FileSource

_CELLS = (".csv", ".tsv")
_TEXT = (*_CELLS, ".json", ".jsonl")
_FORMATS = (*_TEXT, ".parquet", ".arrow")
_READS = f"read are {', '.join(_FORMATS)}, and {', '.join(_TEXT)} with .gz"
_REFUSED = {
    ".pkl": "reading a pickle can run code, so it never is",
    ".pickle": "reading a pickle can run code, so it never is",
    ".zip": "unpack it first",
    ".tar": "unpack it first",
    ".xlsx": "save it as CSV",
    ".txt": "make it JSONL: one object with a name for the text a line",
}
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that is there and of a format that is read."""

    path: Path
    label: str  # what errors and the ledger call it
    kind: str
    quoted: bool = True  # whether cells of CSV may be in quotes


def resolve_files(source: FileSource, folder: Path) -> list[LocalFile]:
    """Return the files that a source names.

    Raises:
        DataError: a file does not exist, or has a format that is not read.
        RecipeError: `quote` has no effect on a file.
    """
    names = [source.file] if isinstance(source.file, str) else source.file
    found = [replace(_checked_file(name, folder), quoted=source.quote == "double") for name in names]
    if source.quote != "double" and (other := [file for file in found if file.kind not in _CELLS]):
        raise RecipeError("`quote` has an effect on CSV and TSV only", where=other[0].label, hint="leave it out")
    return found


def _checked_file(name: str, folder: Path) -> LocalFile:
    """Return the file of that name; raise DataError unless it is a regular file of a known format."""
    path = resolve_path(name, folder)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError("there is no such file", where=name, hint=_missing_hint(path)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=name) from error
    kind = file_format(path)
    if stat.S_ISDIR(mode):
        inside = ", ".join(f"{name}/{file.name}" for file in visible_files(path, "*") if file_format(file))
        hint = f"name its files ({shorten(inside) or 'none here is of a format that is read'})"
        raise DataError("is a folder, not a file", where=name, hint=f"{hint}, or write `hub: {name}` to read all of it")
    if not stat.S_ISREG(mode):
        raise DataError("is not a regular file", where=name)
    if kind is None:
        reason = _REFUSED.get(path.suffix.lower())
        raise DataError(
            f"is in a format that is not read ({path.suffix or 'no ending'})",
            where=name,
            hint=f"{reason}; {_READS}" if reason else _READS,
        )
    return LocalFile(path, source_label(name), kind)


def source_label(name: str) -> str:
    """Return what a file or folder is called in a run folder, which must not hold absolute paths."""
    return Path(name).name if os.path.isabs(os.path.expanduser(name)) else name


def resolve_path(name: str, folder: Path) -> Path:
    """Return the path that a recipe in `folder` means by a name."""
    return folder / os.path.expanduser(name)  # pathlib's own raises for users that do not exist


def file_format(path: Path) -> str | None:
    """Return the format of a file by its name, such as `.csv`; None where it is not read."""
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    return kind if kind in (_TEXT if name.endswith(".gz") else _FORMATS) else None


def _missing_hint(path: Path) -> str | None:
    if any(mark in path.name or mark in path.parent.name for mark in "*?["):
        found = sorted(os.path.relpath(match, path.parent) for match in glob.glob(str(path), recursive=True))
        matches = f" (it matches {len(found)}: {shorten(', '.join(found))})" if found else ""
        return f"patterns are not read: write the files as a list, file: [a.jsonl, b.jsonl]{matches}"
    if not path.parent.is_dir():
        return "its folder does not exist either; paths are relative to the recipe"
    names = [file.name for file in visible_files(path.parent, "*")]
    near = closest(path.name, names, cutoff=0.5)
    if near:
        return f"did you mean {near}?"
    readable = [name for name in names if file_format(Path(name))]
    return f"there are: {shorten(', '.join(readable))}" if readable else "paths are relative to the recipe"


def visible_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files of a folder in a fixed order, without hidden ones, which `datasets` skips too."""
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def digest_source_file(path: Path) -> str:
    """Return the digest of a file; raise DataError where it cannot be read."""
    try:
        return digest_file(path)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


def read_file_rows(file: LocalFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, values) of every row of a file; the cells of CSV are the exact text of the file."""
    if file.kind in _CELLS:
        records = read_csv_records(file.path, file.label, "," if file.kind == ".csv" else "\t", quoted=file.quoted)
        _, columns = next(records)
        yield from (
            (f"{file.label}:{line}", dict(zip(columns, cells, strict=True))) for line, cells in records if cells
        )
    elif file.kind in (".json", ".jsonl"):
        read = read_json_lines if file.kind == ".jsonl" else read_json_rows
        for line, values in read(file.path, file.label):
            yield f"{file.label}:{line}", values
    else:
        if file.path.stat().st_size == 0:
            raise DataError("is empty", where=file.label)
        # By default a batch is a whole row group, which can be the whole file.
        options = {"batch_size": _BATCH} if file.kind == ".parquet" else {}
        with wrap_library_errors(file.label):
            for number, values in enumerate(_opened(file.kind[1:], file, **options), 1):
                yield f"{file.label} row {number}", dict(values)


def _opened(builder: str, file: LocalFile, **options: Any) -> Any:
    """Return one file as a streaming dataset."""
    from datasets import load_dataset

    # The builders log an error and raise it too; once is enough.
    logging.getLogger(f"datasets.packaged_modules.{builder}.{builder}").setLevel(logging.CRITICAL)
    name = glob.escape(str(file.path.absolute()))
    return load_dataset(builder, data_files=name, split="train", streaming=True, **options)


@contextlib.contextmanager
def wrap_library_errors(where: str) -> Iterator[None]:
    """Turn what `datasets` and the libraries below it raise into DataError."""
    try:
        yield
    except (TunesmithError, MemoryError):
        raise
    except Exception as error:  # datasets, pandas, pyarrow and the hub raise errors of no common kind
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"cannot be read ({reason[:300]})", where=where) from error
