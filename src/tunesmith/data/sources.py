"""Rows from files, the hub or the built-in generator: one shape, exact values, and where each row stands.

`text_file` reads text, because it knows lines and changes nothing; the cells of CSV, Parquet, Arrow and the hub
are read by the `datasets` library, streaming, so that nothing is cached and memory stays bounded.
"""

import contextlib
import difflib
import glob
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from tunesmith.core.errors import DataError, RecipeError, TunesmithError
from tunesmith.core.files import digest_file, digest_of
from tunesmith.data import csv_file, json_file
from tunesmith.data.text_file import cut, read_errors_told

_TEXT = (".csv", ".tsv", ".json", ".jsonl")
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
_HUB_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: its 1-based number over the whole source, where it stands, and its values."""

    number: int
    where: str
    values: dict[str, Any]


@runtime_checkable
class FileLike(Protocol):
    """Names local files."""

    @property
    def file(self) -> str | tuple[str, ...]:
        """Path or paths, relative to the recipe."""


@runtime_checkable
class HubLike(Protocol):
    """Names a dataset on the hub, or a local folder laid out like one."""

    @property
    def hub(self) -> str:
        """`org/name`, or a folder relative to the recipe."""

    @property
    def revision(self) -> str | None:
        """Commit, tag or branch."""

    @property
    def config(self) -> str | None:
        """Configuration of the dataset."""

    @property
    def split(self) -> str:
        """Split of the dataset."""


@runtime_checkable
class GeneratedLike(Protocol):
    """Names a generator that tunesmith has itself."""

    @property
    def generated(self) -> str:
        """Name of the generator."""

    @property
    def rows(self) -> int:
        """How many rows to make."""

    @property
    def seed(self) -> int:
        """Seed of the generator."""


SourceLike: TypeAlias = FileLike | HubLike | GeneratedLike


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    label: str  # what errors and the ledger call it; a run folder must not hold absolute paths
    kind: str


class _Unreachable(DataError):
    """The hub did not answer."""


def read_rows(source: SourceLike, *, folder: Path) -> Iterator[Row]:
    """Yield the rows of a source; `folder` is what relative paths are relative to.

    Raises:
        DataError: a file is missing, of another format or damaged, or a row is malformed (which, and where); the
            dataset or its split does not exist or cannot be reached; there are no rows.
        RecipeError: a setting of the source has no effect.
    """
    number = 0
    for number, (where, values) in enumerate(_located_rows(source, folder), 1):
        yield Row(number, where, values)
    if number == 0:
        raise DataError("holds no rows", where=_name(source))


def digest_source(source: SourceLike, *, folder: Path) -> str:
    """Return a digest of all that determines the rows: bytes of files, commit of a dataset, code of a generator.

    A dataset whose commit nobody can tell now (no connection, not in the cache) is known by its reference alone.

    Raises:
        DataError: a file is missing or unreadable, or the dataset does not exist.
    """
    facts: dict[str, Any]
    if isinstance(source, FileLike):
        facts = {"files": [[file.kind, _digest(file.path)] for file in _files(source, folder)]}
    elif isinstance(source, HubLike):
        facts = {"hub": source.hub, "config": source.config, "split": source.split}
        if local := _local_dataset(source, folder):
            facts["hub"] = {path.relative_to(local).as_posix(): _digest(path) for path in _visible_files(local)}
        elif commit := hub_revision(source, folder=folder):
            facts["commit"] = commit
        else:
            facts["unresolved"] = source.revision
    else:
        from tunesmith import demo

        # The code itself and not a version number, which somebody would have to remember to raise.
        code = {path.name: digest_file(path) for path in sorted(Path(demo.__file__).parent.glob("*.py"))}
        facts = {"generated": source.generated, "rows": source.rows, "seed": source.seed, "code": code}
    return digest_of(facts)


def hub_revision(source: HubLike, *, folder: Path) -> str | None:
    """Return the commit that a dataset's reference means now, to be written down and read from then on.

    None for a local folder, and where neither the hub nor the cache can tell.

    Raises:
        DataError: the hub answers that the dataset or revision does not exist.
    """
    if _local_dataset(source, folder):
        return None
    if source.revision is not None and _is_commit(source.revision):
        return source.revision
    try:
        return _commit(source)
    except _Unreachable:
        return None


def missing_column_error(name: str, row: Row) -> DataError:
    """Return the error for a column that a row does not have: what it has instead, and the nearest name."""
    columns = list(row.values)
    alike = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), alike, n=1)
    listed = ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
    hint = f"the columns are: {listed}" if columns else "the row has no columns at all"
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint += "; the file seems not to be separated by what its name says (.csv comma, .tsv tab)"
    return DataError(
        f"there is no column `{name}`",
        where=row.where,
        hint=f"did you mean `{alike[near[0]]}`? {hint}" if near else hint,
    )


def _located_rows(source: SourceLike, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, values) of every row."""
    if isinstance(source, FileLike):
        # All names are checked before the first file is read, which may take long.
        for file in _files(source, folder):
            with read_errors_told(file.path, file.label):
                yield from _file_rows(file)
    elif isinstance(source, HubLike):
        yield from _hub_rows(source, folder)
    else:
        from tunesmith import demo

        if source.generated != demo.NAME:
            raise RecipeError(f"there is no generator `{source.generated}`", hint=f"there is `{demo.NAME}`")
        for number, values in enumerate(demo.load(source.rows, source.seed), 1):
            yield f"{source.generated} row {number}", dict(values)


def _name(source: SourceLike) -> str:
    if isinstance(source, FileLike):
        return ", ".join([source.file] if isinstance(source.file, str) else source.file)
    return f"{source.hub}[{source.split}]" if isinstance(source, HubLike) else source.generated


# --- files ---


def _files(source: FileLike, folder: Path) -> list[_File]:
    names = [source.file] if isinstance(source.file, str) else source.file
    return [_checked_file(name, folder) for name in names]


def _checked_file(name: str, folder: Path) -> _File:
    """Return the file of that name; raise DataError unless it is a regular file of a known format."""
    path = _path(name, folder)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError("there is no such file", where=name, hint=_missing_hint(path)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=name) from error
    kind = _kind(path)
    if stat.S_ISDIR(mode):
        inside = ", ".join(f"{name}/{file.name}" for file in _visible_files(path, "*") if _kind(file))
        hint = f"name its files ({cut(inside) or 'none here is of a format that is read'})"
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
    return _File(path, path.name if os.path.isabs(os.path.expanduser(name)) else name, kind)


def _path(name: str, folder: Path) -> Path:
    return folder / os.path.expanduser(name)  # pathlib's own raises for users that do not exist


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    return kind if kind in (_TEXT if name.endswith(".gz") else _FORMATS) else None


def _missing_hint(path: Path) -> str | None:
    if not path.parent.is_dir():
        return "its folder does not exist either; paths are relative to the recipe"
    names = [file.name for file in _visible_files(path.parent, "*")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    readable = [name for name in names if _kind(Path(name))]
    return f"there are: {cut(', '.join(readable))}" if readable else "paths are relative to the recipe"


def _visible_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files of a folder in a fixed order, without hidden ones, which `datasets` skips too."""
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


def _file_rows(file: _File) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.kind in (".csv", ".tsv"):
        yield from _csv_rows(file, separator="," if file.kind == ".csv" else "\t")
    elif file.kind in (".json", ".jsonl"):
        read = json_file.json_lines if file.kind == ".jsonl" else json_file.json_rows
        for line, values in read(file.path, file.label):
            yield f"{file.label}:{line}", values
    else:
        if file.path.stat().st_size == 0:
            raise DataError("is empty", where=file.label)
        # By default a batch is a whole row group, which can be the whole file.
        options = {"batch_size": _BATCH} if file.kind == ".parquet" else {}
        with _library_errors_told(file.label):
            for number, values in enumerate(_opened(file.kind[1:], file, **options), 1):
                yield f"{file.label} row {number}", dict(values)


def _csv_rows(file: _File, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, cells as the exact text of the file).

    pandas, with which `datasets` reads CSV, fills short records and cuts long ones without a word and knows no lines.
    So `csv_file` goes through the file one batch ahead: what reaches pandas is known to be sound.
    """
    from datasets import Features, Value

    records = csv_file.csv_records(file.path, file.label, separator)
    _, columns = next(records)
    options = {
        "sep": separator,
        "names": columns,  # otherwise a nameless column is renamed
        "header": 0,
        "index_col": False,  # otherwise surplus cells become an index
        "features": Features({name: Value("large_string") for name in columns}),  # otherwise 007 becomes 7
        "na_filter": False,  # otherwise NA, null and an empty cell become NaN
        "skip_blank_lines": False,  # blank lines have to be counted
        "chunksize": _BATCH,
    }
    with _library_errors_told(file.label):
        # As Arrow tables: row by row, `datasets` takes ten times as long.
        tables = _opened("csv", file, **options).with_format("arrow").iter(_BATCH)
        batches = iter(lambda: [(line, bool(cells)) for line, cells in islice(records, _BATCH)], [])
        for batch, table in zip_longest(batches, tables):
            if batch is None or table is None or len(batch) != table.num_rows:
                raise DataError("reads differently in two CSV readers", where=file.label, hint="write it as JSONL")
            rows = zip(batch, table.to_pylist(), strict=True)
            yield from ((f"{file.label}:{line}", values) for (line, is_row), values in rows if is_row)


def _opened(builder: str, file: _File, **options: Any) -> Any:
    """Return one file as a streaming dataset."""
    from datasets import load_dataset

    # The builders log an error and raise it too; once is enough.
    logging.getLogger(f"datasets.packaged_modules.{builder}.{builder}").setLevel(logging.CRITICAL)
    name = glob.escape(str(file.path.absolute()))
    return load_dataset(builder, data_files=name, split="train", streaming=True, **options)


@contextlib.contextmanager
def _library_errors_told(where: str) -> Iterator[None]:
    try:
        yield
    except (TunesmithError, MemoryError):
        raise
    except Exception as error:  # datasets, pandas, pyarrow and the hub raise errors of no common kind
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"cannot be read ({reason[:300]})", where=where) from error


# --- the hub ---


def _hub_rows(source: HubLike, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    label = _name(source)
    local = _local_dataset(source, folder)
    # Without hf:// a folder of the same name where the program was started would be read instead.
    reference = str(local) if local else f"hf://datasets/{source.hub}"
    commit = None if local else _commit(source)
    with _library_errors_told(label):
        splits = load_dataset(reference, name=source.config, revision=commit, streaming=True)
        if source.split not in splits:
            raise DataError(f"there is no split `{source.split}`", where=label, hint=f"splits: {', '.join(splits)}")
        for number, values in enumerate(splits[source.split], 1):
            yield f"{label} row {number}", dict(values)


def _local_dataset(source: HubLike, folder: Path) -> Path | None:
    """Return the folder that a source names instead of a dataset on the hub; raise RecipeError for its revision."""
    path = _path(source.hub, folder)
    if not path.is_dir():
        return None
    if source.revision is not None:
        raise RecipeError("`revision` has no effect on a local folder", where=source.hub, hint="leave it out")
    return path.absolute()


def _commit(source: HubLike) -> str:
    """Return the commit of a dataset on the hub, or of its cached copy when offline.

    Asked first, because an unreachable hub fails here at once and in `load_dataset` after half a minute.
    """
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if source.hub.count("/") != 1 or source.hub.startswith((".", "/", "~")):
        hint = "for a file, write `file:` in place of `hub:`" if _kind(Path(source.hub)) else None
        raise DataError("is neither `org/name` of a dataset nor a folder", where=source.hub, hint=hint)
    if config.HF_HUB_OFFLINE:
        return _cached_commit(source)
    try:
        info = HfApi().dataset_info(source.hub, revision=source.revision, timeout=_HUB_TIMEOUT_SECONDS)
    except RevisionNotFoundError as error:
        raise DataError(f"the dataset has no revision `{source.revision}`", where=source.hub) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the name; if it is private or gated, log in with `hf auth login`"
        raise DataError(
            "the hub has no such dataset, or does not show it to you", where=source.hub, hint=hint
        ) from error
    except Exception as error:  # whose errors these are depends on the HTTP client that the hub's library uses
        hint = "check the connection; with HF_HUB_OFFLINE=1 a copy that `datasets` has cached is read"
        raise _Unreachable(f"the hub cannot be reached ({error})", where=_asked(source), hint=hint) from error
    return str(info.sha)


def _cached_commit(source: HubLike) -> str:
    """Return the commit of the cached copy; `datasets` would read it whatever revision was asked for."""
    from datasets import load_dataset_builder

    try:
        cached = load_dataset_builder(f"hf://datasets/{source.hub}", name=source.config).hash
    except (ConnectionError, ValueError) as error:
        reason = "there is no cached copy" if isinstance(error, ConnectionError) else " ".join(str(error).split())
        problem = f"the hub is not asked, because HF_HUB_OFFLINE is set, and {reason}"
        hint = "unset HF_HUB_OFFLINE, or load it once on a machine with a connection"
        raise _Unreachable(problem, where=_asked(source), hint=hint) from error
    if source.revision not in (None, cached):
        problem = f"the cached copy is of revision {cached}, not {source.revision}, and HF_HUB_OFFLINE is set"
        raise DataError(problem, where=source.hub, hint=f"unset HF_HUB_OFFLINE, or ask for revision {cached}")
    return str(cached)


def _asked(source: HubLike) -> str:
    return source.hub + (f"@{source.revision}" if source.revision else "")


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")
