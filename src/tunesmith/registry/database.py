"""The registry's SQLite file: opening it, its transactions, and the translation of SQLite's errors.

The journal is SQLite's default instead of WAL, which needs shared memory and fails on network file systems.
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
    """Open `registry.sqlite` in the folder `root`. Every operation is one connection with one transaction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / DATABASE

    @contextlib.contextmanager
    def reading(self) -> Iterator[Catalog]:
        """Open a read transaction. A missing registry counts as empty, and reading does not create it.

        Raises:
            DamagedFile: the file is damaged, or it is missing although there are models.
            TunesmithError: the file has another schema, is locked by another process, or cannot be opened.
            RecipeError: this user may not read the file.
        """
        # Look for models first. The database exists before the first model, so a concurrent first `add` is no loss.
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
        """Open a write transaction, one at a time over all processes. It commits at the end, and not after an error.

        Raises:
            DamagedFile, TunesmithError: as for `reading`.
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
            with contextlib.closing(connection):  # closing rolls back an uncommitted transaction
                self._prepare(connection)
                connection.execute(begin)
                yield Catalog(connection)
                connection.execute("COMMIT")
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a broken schema can garble SQLite's message
            raise self._translate(error) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables in a new file; check the schema version and the integrity of an existing one."""
        connection.execute("PRAGMA synchronous = EXTRA")  # a commit survives a power cut
        if _schema(connection) == 0:
            self._create(connection)
        if _schema(connection) != SCHEMA:
            found = f"has schema {_schema(connection)} of another tunesmith version; this version reads schema {SCHEMA}"
            hint = "upgrade tunesmith, or set TUNESMITH_REGISTRY to another registry"
            raise TunesmithError(found, where=str(self.path), hint=hint, code="registry-schema")
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged_error(problem)

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if _schema(connection) == 0:  # otherwise another process has just created them
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise self._damaged_error("this SQLite file belongs to another program")
            if self._has_models():
                raise self._lost_error()
            _create_tables(connection)
        connection.execute("COMMIT")

    def _has_models(self) -> bool:
        return any((self.root / "models").glob(f"*/[0-9]*/{MANIFEST}"))

    def _lost_error(self) -> DamagedFile:
        return self._damaged_error("the file is missing or empty, but the registry has models")

    def _damaged_error(self, problem: str) -> DamagedFile:
        hint = f"restore a backup; models/NAME/VERSION/{MANIFEST} still describes each version"
        return DamagedFile(f"is damaged or was altered: {problem}", where=str(self.path), hint=hint)

    def _translate(self, error: Exception) -> TunesmithError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # the low byte is the primary code
        where = str(self.path)
        if code == sqlite3.SQLITE_FULL:
            hint = "free some disk space and repeat the command"
            return DoesNotFit("the disk is full; nothing was changed", where=where, hint=hint, code="disk-full")
        if code in _LOCKED:
            message = f"another process kept the registry locked for {BUSY_SECONDS:.0f} s"
            return TunesmithError(message, where=where, hint="repeat the command", code="locked")
        hint = "check the file's permissions and its disk, or set TUNESMITH_REGISTRY to another registry"
        is_unreadable = self.path.exists() and not os.access(self.path, os.R_OK)
        if code in _NO_PERMISSION or (code == sqlite3.SQLITE_CANTOPEN and is_unreadable):
            message = f"this user (uid {os.getuid()}) may not {'read' if is_unreadable else 'write'} the registry"
            return RecipeError(message, where=where, code="permission", hint=hint)
        if code in _NOT_USABLE:
            return TunesmithError(f"cannot be opened ({error})", where=where, hint=hint, code="registry-unusable")
        return self._damaged_error(str(error))


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in (*TABLES, f"PRAGMA user_version = {SCHEMA}"):
        connection.execute(statement)


def _schema(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
