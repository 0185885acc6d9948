"""What the registry's database says: its records, its tables, and every question and statement put to them."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of

# Rows hold the record as JSON, with its digest; the other columns are for finding it, and all of them are in an index,
# against which the integrity check compares them. The triggers keep rows from changing, even by hand.
# An alias is what its last move says: kept a second time, it could disagree with the log.
TABLES = (
    """CREATE TABLE versions (
        model TEXT NOT NULL, number INTEGER NOT NULL, files_digest TEXT NOT NULL, facts_digest TEXT NOT NULL,
        digest TEXT NOT NULL, entry TEXT NOT NULL, deleted TEXT, PRIMARY KEY (model, number))""",
    "CREATE UNIQUE INDEX versions_differ ON versions (model, files_digest, facts_digest) WHERE deleted IS NULL",
    """CREATE TABLE moves (
        id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, alias TEXT NOT NULL,
        digest TEXT NOT NULL, entry TEXT NOT NULL)""",
    "CREATE INDEX moves_of_alias ON moves (model, alias)",
    *(
        f"CREATE TRIGGER {table}_{name} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, 'append-only'); END"
        for table, name, event in (
            ("moves", "stay", "DELETE"),
            ("moves", "unchanged", "UPDATE"),
            ("versions", "stay", "DELETE"),
            ("versions", "unchanged", "UPDATE OF model, number, files_digest, facts_digest, digest, entry"),
        )
    ),
)
_VERSION = "SELECT entry, digest FROM versions WHERE deleted IS NULL"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model. `files` is {relative name: {bytes, sha256}}, `digest` is the digest of `files`."""

    model: str
    number: int
    digest: str
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    added: str

    def __str__(self) -> str:
        return f"{self.model}@{self.number}"


@dataclass(frozen=True, slots=True)
class Move:
    """One line of the log: an alias went from version `before` (None: it was new) to version `after`."""

    model: str
    alias: str
    kind: Literal["move", "rollback"]
    before: int | None
    after: int
    verdict: dict[str, Any] | None
    forced: bool
    reason: str | None
    user: str
    time: str


@dataclass(frozen=True, slots=True)
class Model:
    """What is there under one name: the numbers of its versions and where its aliases point."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]


class Catalog:
    """The tables as one transaction sees them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def version(self, model: str, number: int) -> Version:
        """Return a version; raise RecipeError if there is none or it was deleted."""
        storable = min(max(number, 0), 2**63 - 1)  # SQLite knows no other integers
        row = self._run(f"{_VERSION} AND model = ? AND number = ?", (model, storable)).fetchone()
        if row is None:
            raise self.not_found_error(model, f"version {number}")
        return Version(**_decode_entry(*row))

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model, oldest first."""
        return [
            Version(**_decode_entry(*row)) for row in self._run(f"{_VERSION} AND model = ? ORDER BY number", (model,))
        ]

    def find_identical(self, model: str, files: dict[str, Any], facts: dict[str, Any]) -> Version | None:
        """Return the version that has these files and facts, if there is one."""
        digests = (model, digest_of(files), digest_of(facts))
        row = self._run(f"{_VERSION} AND model = ? AND files_digest = ? AND facts_digest = ?", digests).fetchone()
        return Version(**_decode_entry(*row)) if row else None

    def require_model(self, model: str) -> None:
        """Raise RecipeError if a model never had a version."""
        if not self.highest_number(model):
            raise self.not_found_error(model, "version")

    def highest_number(self, model: str) -> int:
        """Return the highest number a model ever had, 0 if there is no such model."""
        return int(self._run("SELECT coalesce(max(number), 0) FROM versions WHERE model = ?", (model,)).fetchone()[0])

    def insert(self, version: Version) -> None:
        """Add a version."""
        entry = asdict(version)
        key = (version.model, version.number, version.digest, digest_of(version.facts))
        self._run("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, NULL)", (*key, digest_of(entry), json.dumps(entry)))

    def mark_deleted(self, version: Version, time: str) -> None:
        """Make a version invisible; its number stays taken."""
        key = (time, version.model, version.number)
        self._run("UPDATE versions SET deleted = ? WHERE model = ? AND number = ?", key)

    def deleted(self) -> set[tuple[str, int]]:
        """Return (model, number) of all deleted versions."""
        return set(self._run("SELECT model, number FROM versions WHERE deleted IS NOT NULL"))

    def models(self) -> list[Model]:
        """Return all models by name."""
        names = [name for (name,) in self._run("SELECT DISTINCT model FROM versions ORDER BY model")]
        return [Model(name, tuple(sorted(self.live_numbers(name))), self.aliases(name)) for name in names]

    def live_numbers(self, model: str) -> set[int]:
        """Return the numbers of a model's versions, deleted ones left out."""
        rows = self._run("SELECT number FROM versions WHERE model = ? AND deleted IS NULL", (model,))
        return {number for (number,) in rows}

    def aliases(self, model: str) -> dict[str, int]:
        """Return {alias: number} of a model, by alias."""
        last = {move.alias: move.after for move in self.moves(model)}
        return dict(sorted(last.items()))

    def moves(self, model: str, alias: str | None = None) -> list[Move]:
        """Return the log of a model, or of one of its aliases, oldest first."""
        query = "SELECT entry, digest FROM moves WHERE model = ? AND alias = coalesce(?, alias) ORDER BY id"
        return [Move(**_decode_entry(*row)) for row in self._run(query, (model, alias))]

    def append_move(self, move: Move) -> None:
        """Add a move to the log, which lets its alias point where it says."""
        entry = json_roundtrip(asdict(move))
        row = (move.model, move.alias, digest_of(entry), json.dumps(entry))
        self._run("INSERT INTO moves VALUES (NULL, ?, ?, ?, ?)", row)

    def not_found_error(self, model: str, what: str) -> RecipeError:
        """Return the error for a model, version or alias that is not there, saying what is."""
        if not self.highest_number(model):
            there = ", ".join(known.name for known in self.models()) or "no model at all"
            return RecipeError(f"there is no model `{model}` in the registry", hint=f"there is {there}")
        numbers, aliases = sorted(self.live_numbers(model)), self.aliases(model)
        there = ", ".join([*map(str, numbers), *(f"{alias} ({number})" for alias, number in aliases.items())])
        return RecipeError(f"there is no {what} of `{model}`", hint=f"there is {there or 'none left'}")


def alias_history(moves: Iterable[Move]) -> list[int]:
    """Return the versions an alias points at by way of, oldest first, present one last.

    A rollback takes the way back to where it went; a move to where the alias is leaves no trace.
    """
    way: list[int] = []
    for move in moves:
        if move.kind == "rollback":
            way.pop()
            while way and way[-1] != move.after:
                way.pop()
        if not way or way[-1] != move.after:
            way.append(move.after)
    return way


def json_roundtrip(value: Any) -> Any:
    """Return a value as JSON gives it back, so that what is stored and what is compared are the same.

    NaN and infinity become their names, because a malformed verdict must be recordable; lone surrogates become `?`.
    """
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"), parse_constant=str)


def _decode_entry(text: str, digest: str) -> Any:
    """Return a stored value; raise DatabaseError, as SQLite does, if it is not the one that was stored."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"{error} in {text[:40]!a}") from error
    if digest_of(value) != digest:
        raise sqlite3.DatabaseError(f"{text[:40]!a} does not match its digest")
    return value
