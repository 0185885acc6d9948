"""Rows from files, the hub or the built-in generator: one shape, exact values, and where each row stands."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import digest_file, digest_of
from tunesmith.core.suggest import closest
from tunesmith.data.hub import cache_dataset, local_dataset_folder, read_hub_rows, resolve_commit
from tunesmith.data.local_files import (
    LocalFile,
    digest_source_file,
    read_file_rows,
    resolve_files,
    resolve_path,
    source_label,
    visible_files,
)
from tunesmith.data.row_formats import recognize_row_format
from tunesmith.data.text_file import wrap_read_errors
from tunesmith.recipe.data_source import FileSource, HubSource, Source, Sources

_PATIENCE = 1000
"""A column that so many first rows of JSON lack is missing, not just left out of rows where it is empty."""

Located = tuple[str, dict[str, Any]]
"""Where a row is, and its values."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its 1-based number over all sources, where it stands, its values, and the name of its source."""

    number: int
    where: str
    values: dict[str, Any]
    source: str


def named_sources(sources: Sources) -> dict[str, Source]:
    """Return the sources of a recipe by name, in order; raise RecipeError where two have the same."""
    named: dict[str, Source] = {}
    for source in sources if isinstance(sources, tuple) else (sources,):
        name = source.name or _name(source)
        if name in named:
            raise RecipeError(f"two sources are called `{name}`", where="data.source", hint="give each a `name`")
        named[name] = source
    return named


def read_rows(
    sources: Sources, *, folder: Path, needed: Sequence[str] = (), optional: Collection[str] = ()
) -> Iterator[Row]:
    """Yield the rows of one source after the other.

    Args:
        folder: what relative paths are relative to.
        needed: columns that every file or dataset has to have, though JSON may leave them out of some rows.
        optional: columns that at least one of them has to have.

    Raises:
        DataError: a file is missing, of another format or damaged, or a row is malformed (which, and where); the
            dataset or its split does not exist or cannot be reached; a source lacks rows, or columns that are needed
            or to be renamed.
        RecipeError: a setting of a source has no effect, or two have one name.
    """
    number = 0
    anywhere = MissingColumns(optional, patience=None)
    for name, source in named_sources(sources).items():
        before = number
        theirs = MissingColumns(source.rename, patience=_PATIENCE)
        for may_lack, located in _located_parts(source, folder):
            ours = MissingColumns(needed, patience=_PATIENCE if may_lack else 1)
            for where, values in located:
                number += 1
                row = Row(number, where, values, name)
                theirs.look(row)
                row = _renamed(row, source.rename) if source.rename else row
                ours.look(row)
                anywhere.look(row)
                yield row
            ours.check()
        theirs.check()
        if number == before:
            raise DataError("holds no rows", where=name)
    anywhere.check()


class MissingColumns:
    """The columns, of those given, that no row has had so far.

    Args:
        patience: after how many rows a column that none of them had is called missing; None waits for the last.
    """

    def __init__(self, columns: Iterable[str], *, patience: int | None) -> None:
        self._absent = list(columns)
        self._patience = patience
        self._rows = 0
        self._first: Row | None = None

    def look(self, row: Row) -> None:
        """Take a row into account; raise DataError if a column is still absent after `patience` rows."""
        if not self._absent:
            return
        self._first = self._first or row
        self._rows += 1
        self._absent = [column for column in self._absent if column not in row.values]
        if self._rows == self._patience:
            self.check()

    def check(self) -> None:
        """Raise DataError if there is a column that no row had."""
        if self._absent and self._first is not None:
            raise missing_column_error(self._absent[0], self._first)


def _renamed(row: Row, names: dict[str, str]) -> Row:
    values = {names.get(column, column): value for column, value in row.values.items()}
    if len(values) != len(row.values):
        twice = next(ours for ours in names.values() if sum(names.get(c, c) == ours for c in row.values) > 1)
        raise DataError(f"renaming gives two columns the name `{twice}`", where=row.where)
    return replace(row, values=values)


def digest_sources(sources: Sources, *, folder: Path, commits: Mapping[str, str] | None = None) -> str:
    """Return a digest of all that determines the rows: bytes of files, commit of a dataset, code of a generator.

    A dataset whose commit nobody can tell now (no connection, not in the cache) is known by its reference alone.

    Args:
        sources: the recipe's.
        folder: what relative paths are relative to.
        commits: of datasets that are pinned, by the name of the source; the hub is not asked about them.

    Raises:
        DataError: a file is missing or unreadable, or the dataset does not exist.
    """
    found = [_facts(source, folder, (commits or {}).get(name)) for name, source in named_sources(sources).items()]
    return digest_of(found[0] if len(found) == 1 else found)


def resolve_commits(sources: Sources, *, folder: Path) -> dict[str, str]:
    """Return the commits that the datasets of the hub have now, by the name of the source, as far as they are known."""
    hub = {name: source for name, source in named_sources(sources).items() if isinstance(source, HubSource)}
    found = {name: resolve_commit(source, folder=folder) for name, source in hub.items()}
    return {name: commit for name, commit in found.items() if commit is not None}


def sources_available(sources: Sources, *, folder: Path, commits: Mapping[str, str] | None = None) -> bool:
    """Return whether rows can be compared now: all files exist, and datasets are pinned, cached or can be reached."""
    named = named_sources(sources).items()
    return all(name in (commits or {}) or _is_there(source, folder) for name, source in named)


def _is_there(source: Source, folder: Path) -> bool:
    if isinstance(source, FileSource):
        names = [source.file] if isinstance(source.file, str) else source.file
        return all(resolve_path(name, folder).exists() for name in names)
    try:
        return (
            not isinstance(source, HubSource)
            or local_dataset_folder(source, folder) is not None
            or resolve_commit(source, folder=folder) is not None
        )
    except DataError:
        return False


def cache_datasets(sources: Sources, *, folder: Path) -> None:
    """Have copies of rows that are on the hub, for machines that do not ask it; raise DataError where one cannot be."""
    for source in named_sources(sources).values():
        if isinstance(source, HubSource):
            cache_dataset(source, folder=folder)


def _facts(source: Source, folder: Path, pinned: str | None) -> dict[str, Any]:
    facts: dict[str, Any]
    if isinstance(source, FileSource):
        facts = {"files": [[file.kind, digest_source_file(file.path)] for file in resolve_files(source, folder)]}
    elif isinstance(source, HubSource):
        facts = {"hub": source.hub, "config": source.config, "split": source.split}
        if local := local_dataset_folder(source, folder):
            facts["hub"] = {
                path.relative_to(local).as_posix(): digest_source_file(path) for path in visible_files(local)
            }
        elif commit := pinned or resolve_commit(source, folder=folder):
            facts["commit"] = commit
        else:
            facts["unresolved"] = source.revision
    else:
        from tunesmith import demo

        # The code itself and not a version number, which somebody would have to remember to raise.
        code = {path.name: digest_file(path) for path in sorted(Path(demo.__file__).parent.glob("*.py"))}
        facts = {"generated": source.generated, "rows": source.rows, "seed": source.seed, "code": code}
    return facts


def missing_column_error(name: str, row: Row) -> DataError:
    """Return the error for a column that rows do not have: what they have instead, and the nearest name."""
    columns = list(row.values)
    alike = {column.casefold(): column for column in columns}
    near = closest(name.strip().casefold(), alike)
    listed = ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
    hint = f"the columns are: {listed}" if columns else "the row has no columns at all"
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint += "; the file seems not to be separated by what its name says (.csv comma, .tsv tab)"
    elif f"{name}?" in columns:
        hint = (
            f"`{{{name}?}}` means a column `{name}` that may be empty; rename: {{'{name}?': {name}}} gives it that name"
        )
    elif near:
        hint = f"did you mean `{alike[near]}`? {hint}"
    elif shape := recognize_row_format(row.values):
        hint += f"; {shape}"
    return DataError(f"there is no column `{name}`", where=row.where, hint=hint)


def _located_parts(source: Source, folder: Path) -> Iterator[tuple[bool, Iterator[Located]]]:
    """Yield the rows of each file of a source, and whether some of them may lack columns that others have."""
    if isinstance(source, FileSource):
        # All names are checked before the first file is read, which may take long.
        for file in resolve_files(source, folder):
            yield file.kind in (".json", ".jsonl"), _rows_of(file)
    elif isinstance(source, HubSource):
        yield False, read_hub_rows(source, folder, _name(source))
    else:
        from tunesmith import demo

        made = enumerate(demo.load(source.rows, source.seed), 1)
        yield False, ((f"{source.generated} row {number}", dict(values)) for number, values in made)


def _rows_of(file: LocalFile) -> Iterator[Located]:
    with wrap_read_errors(file.path, file.label):
        yield from read_file_rows(file)


def _name(source: Source) -> str:
    if isinstance(source, FileSource):
        return ", ".join(map(source_label, [source.file] if isinstance(source.file, str) else source.file))
    return f"{source_label(source.hub)}[{source.split}]" if isinstance(source, HubSource) else source.generated
