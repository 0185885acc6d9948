"""Read rows from files, datasets on the hub or the built-in generator, each with its location and its exact values."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import contains
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import digest_file, digest_of
from tunesmith.core.rundir import HELD_OUT
from tunesmith.core.suggest import closest
from tunesmith.data.find_files import (
    choose_shards,
    describe_matches,
    file_names,
    resolve_files,
    source_exists,
    source_label,
)
from tunesmith.data.hub import cache_dataset, local_dataset_folder, read_hub_rows, resolve_commit
from tunesmith.data.local_files import (
    digest_folder,
    digest_source_file,
    read_file_rows,
)
from tunesmith.data.remote_files import fetch, is_remote
from tunesmith.data.row_formats import recognize_format
from tunesmith.recipe.data_source import EmbeddedSource, FileSource, HubSource, Source, Sources
from tunesmith.recipe.held_out import own_source
from tunesmith.recipe.schema import DataBase
from tunesmith.tasks.cells import InvalidJson, find_cell, has_cell, nested_paths

_JSON_PROBE_ROWS = 1000
"""A column that is absent from this many first rows of a JSON file is missing; writers of JSON omit empty values."""

_MAX_PATHS = 500  # looked through for a similar name

LocatedValues = tuple[str, dict[str, Any]]
"""The location (file and line) and the values of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its 1-based number over all sources, its location, its values, and the name of its source.

    `split` is set if all rows of the source are in one split. `loss_weight` is that of the source.
    """

    number: int
    where: str
    values: dict[str, Any]
    source: str
    split: str | None = None
    loss_weight: float = 1.0


def named_sources(sources: Sources) -> dict[str, Source]:
    """Return the sources of a recipe by name, in order; raise RecipeError if two have the same name."""
    named: dict[str, Source] = {}
    for source in sources if isinstance(sources, tuple) else (sources,):
        name = source.name or _default_name(source)
        if name in named:
            problem, hint = f"two sources have the name `{name}`", "set a `name` for each"
            raise RecipeError(problem, where="data.source", hint=hint, code="duplicate-source")
        named[name] = source
    return named


def own_splits(data: DataBase) -> dict[str, str]:
    """Return {name of a source: split} of the sources that hold only valid or only test rows."""
    own = {split: own_source(data, split) for split in HELD_OUT}
    return {name: split for split, sources in own.items() if sources is not None for name in named_sources(sources)}


def read_rows(
    sources: Sources,
    *,
    folder: Path,
    needed: Sequence[str] = (),
    optional: Collection[str] = (),
    splits: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Row]:
    """Yield the rows of all sources, one source after the other.

    Args:
        folder: the folder that relative paths start from.
        needed: columns that every file or dataset must have, although rows of JSON may omit them.
        optional: columns that at least one file or dataset must have.
        splits: the split of all rows of a source, by the source's name.

    Raises:
        DataError: a file is missing, of another format or damaged; a row is malformed (the error names its location);
            the dataset or its split does not exist or cannot be reached; a source has no rows, or lacks columns that
            are needed or renamed.
        RecipeError: a setting of a source has no effect, or two sources have the same name.
    """
    number = 0
    optional_check = MissingColumns(optional, after_rows=None)
    for name, source in named_sources(sources).items():
        first_number = number
        rename_check = MissingColumns(source.rename, after_rows=_JSON_PROBE_ROWS, whole=True)
        for may_omit_columns, rows in _read_parts(source, folder):
            needed_check = MissingColumns(needed, after_rows=_JSON_PROBE_ROWS if may_omit_columns else 1)
            for where, values in rows:
                number += 1
                row = Row(number, where, values, name, splits.get(name), source.loss_weight)
                rename_check.observe(row)
                row = _rename(row, source.rename) if source.rename else row
                needed_check.observe(row)
                optional_check.observe(row)
                yield row
            needed_check.check()
        rename_check.check()
        if number == first_number:
            raise DataError("has no rows", where=name, code="no-rows")
    optional_check.check()


class MissingColumns:
    """The columns that no observed row has had.

    Args:
        after_rows: the number of rows after which such a column is an error; None checks only when asked to. A path
            into a column may be absent from _JSON_PROBE_ROWS rows, because its objects need not have the same keys.
        whole: whether only whole columns count, and no path into one.
    """

    def __init__(self, columns: Iterable[str], *, after_rows: int | None, whole: bool = False) -> None:
        self._missing = list(columns)
        self._after_rows = after_rows
        self._has: Callable[[Mapping[str, Any], str], bool] = contains if whole else has_cell
        self._first_row: Row | None = None

    def observe(self, row: Row) -> None:
        """Remove the row's columns from the missing ones; raise DataError if any is left after `after_rows` rows."""
        if not self._missing:
            return
        self._first_row = self._first_row or row
        self._missing = [column for column in self._missing if not self._has(row.values, column)]
        rows = row.number - self._first_row.number + 1
        if self._after_rows == rows and any("." not in column for column in self._missing):
            self._missing.sort(key=lambda column: "." in column)
            self.check()
        if self._after_rows is not None and rows == _JSON_PROBE_ROWS:
            self.check()

    def check(self) -> None:
        """Raise DataError if a column was in none of the rows."""
        if self._missing and self._first_row is not None:
            raise missing_column_error(self._missing[0], self._first_row)


def _rename(row: Row, names: dict[str, str]) -> Row:
    values = {names.get(column, column): value for column, value in row.values.items()}
    if len(values) != len(row.values):
        repeated = next(new for new in names.values() if sum(names.get(c, c) == new for c in row.values) > 1)
        raise DataError(f"`rename` names two columns `{repeated}`", where=row.where, code="duplicate-column")
    return replace(row, values=values)


def digest_sources(sources: Sources, *, folder: Path, commits: Mapping[str, str] | None = None) -> str:
    """Return a digest of everything that determines the rows: files, the commit of a dataset, a generator's code.

    If the commit of a dataset is unknown (no connection, not in the cache), its revision is digested instead.

    Args:
        sources: the recipe's sources.
        folder: the folder that relative paths start from.
        commits: the commits of pinned datasets by source name; the hub is not asked for them.

    Raises:
        DataError: a file is missing or unreadable, or the dataset does not exist.
    """
    identities = [
        _identity(source, folder, (commits or {}).get(name)) for name, source in named_sources(sources).items()
    ]
    return digest_of(identities[0] if len(identities) == 1 else identities)


def resolve_commits(sources: Sources, *, folder: Path) -> dict[str, str]:
    """Return the current commits of the hub's datasets by source name, without those that are unknown."""
    hub_sources = {name: source for name, source in named_sources(sources).items() if isinstance(source, HubSource)}
    commits = {name: resolve_commit(source, folder=folder) for name, source in hub_sources.items()}
    return {name: commit for name, commit in commits.items() if commit is not None}


def sources_available(sources: Sources, *, folder: Path, commits: Mapping[str, str] | None = None) -> bool:
    """Return whether the rows can be compared now: all files exist, and datasets are pinned, cached or reachable."""
    named = named_sources(sources).items()
    return all(name in (commits or {}) or _is_available(source, folder) for name, source in named)


def _is_available(source: Source, folder: Path) -> bool:
    if isinstance(source, FileSource):
        return source_exists(source, folder)
    if not isinstance(source, HubSource):
        return True
    try:
        return bool(local_dataset_folder(source, folder) or resolve_commit(source, folder=folder))
    except DataError:
        return False


def matched_files(sources: Sources, *, folder: Path) -> list[str]:
    """Return, for each pattern and folder of a recipe's sources, how many files it is; raise DataError if none."""
    files = [source for source in named_sources(sources).values() if isinstance(source, FileSource)]
    return [text for source in files for text in describe_matches(source, folder)]


def cache_datasets(sources: Sources, *, folder: Path) -> None:
    """Download datasets of the hub and remote files into the cache, for machines that are offline.

    Raises:
        DataError: this fails.
    """
    for source in named_sources(sources).values():
        if isinstance(source, HubSource):
            cache_dataset(source, folder=folder)
        elif isinstance(source, FileSource):
            for name in filter(is_remote, file_names(source)):
                fetch(name, choose_shards)


def _identity(source: Source, folder: Path, pinned_commit: str | None) -> dict[str, Any]:
    """Return everything that determines the rows of one source."""
    if isinstance(source, FileSource):
        return {"files": [[file.format, digest_source_file(file.path)] for file in resolve_files(source, folder)]}
    if isinstance(source, HubSource):
        identity = {"config": source.config, "split": source.split}
        if local := local_dataset_folder(source, folder):
            return {"hub": digest_folder(local), **identity}
        commit = pinned_commit or resolve_commit(source, folder=folder)
        return {"hub": source.hub, **identity, **({"commit": commit} if commit else {"unresolved": source.revision})}
    # The files instead of a version number, which a change of them could fail to increase.
    if isinstance(source, EmbeddedSource):
        from tunesmith import general

        return {"embedded": source.embedded, "code": _package_digests(general)}
    from tunesmith import demo

    return {
        "generated": source.generated, "rows": source.rows, "seed": source.seed, "code": _package_digests(demo)
    }  # fmt: skip


def _package_digests(package: ModuleType) -> dict[str, str]:
    """Return {file: digest} of the files of a folder of ours that makes rows."""
    paths = sorted(Path(str(package.__file__)).parent.glob("*.*"))
    return {path.name: digest_file(path) for path in paths}


def missing_column_error(name: str, row: Row) -> DataError:
    """Return the error for a column that the rows lack. It lists the row's columns and suggests the closest name."""
    columns = list(row.values)
    paths = list(dict.fromkeys([*columns, *islice(nested_paths(row.values), _MAX_PATHS)]))
    by_folded_name = {path.casefold(): path for path in (paths if "." in name else columns)}
    near = closest(name.strip().casefold(), by_folded_name)
    inside = next((path for path in paths if path.endswith(f".{name}")), None)
    listed = ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
    hint = f"the columns are: {listed}" if columns else "the row has no columns at all"
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint += "; the file seems to use another separator than its extension implies (.csv comma, .tsv tab)"
    elif f"{name}?" in columns:
        hint = f"`{{{name}?}}` means a column `{name}` that may be empty; to name it so, rename: {{'{name}?': {name}}}"
    elif isinstance(found := _find_cell(row, name), InvalidJson):
        hint = str(found)
    elif near:
        hint = f"did you mean `{by_folded_name[near]}`? {hint}"
    elif inside:
        hint = f"did you mean `{inside}`? {hint}"
    elif row_format := recognize_format(row.values):
        hint += f"; {row_format.hint()}"
    return DataError(f"there is no column `{name}`", where=row.where, hint=hint, code="missing-column")


def _find_cell(row: Row, name: str) -> Any:
    """Return the value of a cell, or the error of the JSON that its path leads into."""
    try:
        return find_cell(row.values, name)
    except InvalidJson as error:
        return error


def _read_parts(source: Source, folder: Path) -> Iterator[tuple[bool, Iterator[LocatedValues]]]:
    """Yield the rows of each file of a source, and whether the format lets rows omit columns."""
    if isinstance(source, FileSource):
        # All names are checked before the first file is read, because reading may take long.
        for file in resolve_files(source, folder):
            yield file.format in (".json", ".jsonl"), read_file_rows(file)
    elif isinstance(source, HubSource):
        yield False, read_hub_rows(source, folder, _default_name(source))
    elif isinstance(source, EmbeddedSource):
        from tunesmith import general

        yield False, ((f"{source.embedded} row {number}", dict(row)) for number, row in enumerate(general.rows(), 1))
    else:
        from tunesmith import demo

        rows = enumerate(demo.load(source.rows, source.seed), 1)
        yield False, ((f"{source.generated} row {number}", dict(values)) for number, values in rows)


def _default_name(source: Source) -> str:
    if isinstance(source, FileSource):
        return ", ".join(map(source_label, file_names(source)))
    if isinstance(source, HubSource):
        return f"{source_label(source.hub)}[{source.split}]"
    return source.embedded if isinstance(source, EmbeddedSource) else source.generated
