"""The registry's SQLite file: how it is opened, its transactions, and what its faults mean.

The journal is SQLite's default, not WAL: that one needs shared memory, which network file systems lack.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError, TunesmithError
from tunesmith.core.files import MANIFEST
from tunesmith.registry.catalog import TABLES, Catalog

DATABASE = "registry.sqlite"
SCHEMA = 1
BUSY_SECONDS = 60.0

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_NO_PERMISSION = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
_NOT_USABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)


class Database:
    """The file `registry.sqlite` below `root`. Every operation is one connection and one transaction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / DATABASE

    @contextlib.contextmanager
    def reading(self) -> Iterator[Catalog]:
        """Give one consistent view. A registry that is not there is empty, and looking does not create it.

        Raises:
            DamagedFile: the file is damaged, or gone while models are there.
            TunesmithError: it is of another schema, held by another process, or cannot be opened.
            RecipeError: this user may not read it.
        """
        # Models first: the file is there before the first of them, so a first `add` going on is not taken for a loss.
        models = self._has_models()
        absent = not self.path.exists() or self.path.stat().st_size == 0
        if absent and models:
            raise self._lost_error()
        if absent:
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
                _create_tables(empty)
                yield Catalog(empty)
        else:
            with self._transaction("BEGIN") as catalog:
                yield catalog

    @contextlib.contextmanager
    def writing(self) -> Iterator[Catalog]:
        """Give a transaction that no other writer overlaps. It commits on leaving, and not on an error.

        Raises:
            DamagedFile, TunesmithError: as `reading`.
            RecipeError: this user may not write to the registry.
            DoesNotFit: the disk is full.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._transaction("BEGIN IMMEDIATE") as catalog:
            yield catalog

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Catalog]:
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            with contextlib.closing(connection):  # closing rolls back what was not committed
                self._prepare(connection)
                connection.execute(begin)
                yield Catalog(connection)
                connection.execute("COMMIT")
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter in messages on a broken schema
            raise self._translate(error) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables of a new file and look through an old one."""
        connection.execute("PRAGMA synchronous = EXTRA")  # the commit itself survives a power cut
        if _schema(connection) == 0:
            self._create(connection)
        if _schema(connection) != SCHEMA:
            raise TunesmithError(
                f"was written by another tunesmith: schema {_schema(connection)}, this one knows {SCHEMA}",
                where=str(self.path),
                hint="upgrade tunesmith, or name another registry with TUNESMITH_REGISTRY",
            )
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged_error(problem)

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if _schema(connection) == 0:  # else another process was quicker
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise self._damaged_error("it is an SQLite file of something else")
            if self._has_models():
                raise self._lost_error()
            _create_tables(connection)
        connection.execute("COMMIT")

    def _has_models(self) -> bool:
        return any((self.root / "models").glob(f"*/[0-9]*/{MANIFEST}"))

    def _lost_error(self) -> DamagedFile:
        return self._damaged_error("it is missing or empty, while models are there")

    def _damaged_error(self, problem: str) -> DamagedFile:
        return DamagedFile(
            f"is damaged or was altered: {problem}",
            where=str(self.path),
            hint=f"put back a copy of it; models/NAME/VERSION/{MANIFEST} still say what each version is",
        )

    def _translate(self, error: Exception) -> TunesmithError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # the low byte is the kind
        where = str(self.path)
        if code == sqlite3.SQLITE_FULL:
            return DoesNotFit("the disk is full; nothing was changed", where=where, hint="free some space")
        if code in _LOCKED:
            return TunesmithError(f"another process held it for {BUSY_SECONDS:.0f} s", where=where, hint="try again")
        hint = "see to its permissions and its disk, or name another registry with TUNESMITH_REGISTRY"
        is_hidden = self.path.exists() and not os.access(self.path, os.R_OK)
        if code in _NO_PERMISSION or (code == sqlite3.SQLITE_CANTOPEN and is_hidden):
            what = f"cannot be {'read' if is_hidden else 'written'} by this user (uid {os.getuid()})"
            return RecipeError(what, where=where, code="permission", hint=hint)
        if code in _NOT_USABLE:
            return TunesmithError(f"cannot be used ({error})", where=where, hint=hint)
        return self._damaged_error(str(error))


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in (*TABLES, f"PRAGMA user_version = {SCHEMA}"):
        connection.execute(statement)


def _schema(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
