"""Find the files that a source names: files, patterns such as `data/*.jsonl`, folders, and remote files."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.suggest import closest
from tunesmith.data.remote_files import fetch, is_remote, remote_label
from tunesmith.data.split import SPLIT_NAMES
from tunesmith.data.text_file import shorten
from tunesmith.recipe.data_source import FileSource

CELLS = (".csv", ".tsv")
_TEXT = (*CELLS, ".json", ".jsonl")
_FORMATS = (*_TEXT, ".parquet", ".arrow")
_COMPRESSIONS = (".gz", ".zst")
_SUPPORTED = f"supported are {', '.join(_FORMATS)}, and {', '.join(_TEXT)} with {' or '.join(_COMPRESSIONS)}"
_UNSUPPORTED = {
    ".pkl": "reading a pickle can run code, so pickles are not supported",
    ".pickle": "reading a pickle can run code, so pickles are not supported",
    ".zip": "unpack it first",
    ".tar": "unpack it first",
    ".xlsx": "save it as CSV",
    ".txt": "convert it to JSONL: one object per line, with the text under a name",
}
_PATTERN = re.compile(r"[*?\[]")
# Folders and files of the splits that a data set was published with.
_SPLIT = re.compile(rf"(?i)(?:^|[^a-z])({'|'.join(chain(*SPLIT_NAMES.values()))})(?=[^a-z]|$)")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An existing file of a supported format.

    Attributes:
        label: its name in errors and in the ledger.
        format: the extension without that of a compression, such as `.csv`.
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
    found = [match for name in file_names(source) for match in _expand(name, folder)]
    files = [_check_file(path, label, quoted=source.quote == "double") for path, label in found]
    if source.quote != "double" and (others := [file.label for file in files if file.format not in CELLS]):
        raise RecipeError("`quote` applies to CSV and TSV only", where=others[0], hint="remove it", code="no-effect")
    return files


def file_names(source: FileSource) -> Sequence[str]:
    """Return the names of a source's files, as they are in the recipe."""
    return [source.file] if isinstance(source.file, str) else source.file


def describe_matches(source: FileSource, folder: Path) -> Iterator[str]:
    """Yield, for each name of several files, how many they are and which is the first and the last.

    Raises:
        DataError: see `resolve_files`.
    """
    for name in file_names(source):
        matches = _expand(name, folder)
        if [label for _, label in matches] != [source_label(name)]:
            first, last = matches[0][1], matches[-1][1]
            listed = first if len(matches) == 1 else f"{first} to {last}"
            yield f"`{source_label(name)}` is {len(matches):,} file{'s'[: len(matches) > 1]}: {listed}"


def source_exists(source: FileSource, folder: Path) -> bool:
    """Return whether all files of a source exist, and each pattern matches one."""
    try:
        return all(path.exists() for name in file_names(source) for path, _ in _expand(name, folder))
    except (DataError, RecipeError):
        return False


def _expand(name: str, folder: Path) -> list[tuple[Path, str]]:
    """Return the path and the label of each file that a name means: one file, the matches of a pattern, or a folder's.

    The order is that of the paths.
    """
    if is_remote(name):
        return fetch(name, choose_shards)
    path = resolve_path(name, folder)
    with contextlib.suppress(OSError, ValueError):
        if name and path.is_dir():
            return _folder_files(name, path)
        if not path.exists() and _PATTERN.search(name):
            return _pattern_files(name, folder)
    return [(path, source_label(name))]


def _folder_files(name: str, path: Path) -> list[tuple[Path, str]]:
    """Return the files of supported formats below a folder, without hidden ones."""
    names = choose_shards([file.relative_to(path).as_posix() for file in visible_files(path)], name)
    label = source_label(name.rstrip("/")) or "."
    return [(path / file_name, f"{label}/{file_name}") for file_name in names]


def choose_shards(names: Sequence[str], folder: str) -> list[str]:
    """Return which files of a folder are read: those of supported formats, without hidden ones.

    Args:
        names: the paths of its files in the folder.
        folder: the folder's name for errors.

    Raises:
        DataError: there is no such file, or they are of several splits.
    """
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    chosen = [name for name in visible if file_format(Path(name))]
    if not chosen:
        others = shorten(", ".join(sorted({name.split("/")[0] for name in visible}))) or "nothing"
        hint = f"it contains {others}; {_SUPPORTED}"
        raise DataError("has no file of a supported format", where=folder, hint=hint, code="not-found")
    splits = {split.lower(): name for name in chosen for split in _SPLIT.findall(name)}
    if len(splits) > 1:
        listed = ", ".join(sorted(splits.values()))
        hint = f"name the files of one split, such as `{folder.rstrip('/')}/train*`"
        hint += "" if is_remote(folder) else f", or write `hub: {folder}`"
        raise DataError(f"has files of several splits ({shorten(listed)})", where=folder, hint=hint, code="wrong-path")
    return chosen


def _pattern_files(name: str, folder: Path) -> list[tuple[Path, str]]:
    """Return the files that match a pattern, without hidden ones; `**` is any number of folders."""
    parts = Path(name).parts
    fixed = next(index for index, part in enumerate(parts) if _PATTERN.search(part))
    base_name = str(Path(*parts[:fixed])) if fixed else ""
    base = resolve_path(base_name, folder)
    pattern = "/".join(parts[fixed:])
    files = visible_files(base, pattern) if base.is_dir() else []
    if not files:
        there = [file.relative_to(base).as_posix() for file in visible_files(base)] if base.is_dir() else []
        hint = f"there are: {shorten(', '.join(there))}" if there else _missing_hint(base / "x")
        raise DataError("no file matches the pattern", where=name, hint=hint, code="not-found")
    label = source_label(base_name)
    return [(file, "/".join(filter(None, (label, file.relative_to(base).as_posix())))) for file in files]


def _check_file(path: Path, label: str, *, quoted: bool) -> LocalFile:
    """Return the file at a path; raise DataError unless it is a regular file of a supported format."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError("there is no such file", where=label, hint=_missing_hint(path), code="not-found") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=label, code="unreadable") from error
    format_ = file_format(path)
    if not stat.S_ISREG(mode):
        raise DataError("is not a regular file", where=label, code="wrong-path")
    if format_ is None:
        problem = f"has an unsupported format ({path.suffix or 'no extension'})"
        reason = _UNSUPPORTED.get(path.suffix.lower())
        hint = f"{reason}; {_SUPPORTED}" if reason else _SUPPORTED
        raise DataError(problem, where=label, hint=hint, code="unsupported-format")
    return LocalFile(path, label, format_, quoted)


def source_label(name: str) -> str:
    """Return the name of a file or folder for a run folder, which must not contain absolute paths or secrets."""
    if is_remote(name):
        return remote_label(name)
    return Path(name).name if os.path.isabs(os.path.expanduser(name)) else name


def resolve_path(name: str, folder: Path) -> Path:
    """Return the path of a name in a recipe in `folder`."""
    return folder / os.path.expanduser(name)  # Path.expanduser raises for users that do not exist


def file_format(path: Path) -> str | None:
    """Return the format of a file by its name, such as `.csv`; None if it is not supported."""
    name = path.name.lower()
    stem = next((name.removesuffix(end) for end in _COMPRESSIONS if name.endswith(end)), name)
    extension = Path(stem).suffix
    return extension if extension in (_FORMATS if stem == name else _TEXT) else None


def _missing_hint(path: Path) -> str | None:
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
