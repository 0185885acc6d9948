"""The registry's records, its tables, and every SQL statement that reads or writes them."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of

# `entry` is the record as JSON and `digest` its digest. The other columns are for lookups; each is in an index, so that
# SQLite's integrity check finds an altered one. The triggers refuse changes of rows, also those made by hand.
# Aliases have no table: their last move says where they point, and a second copy could disagree with the log.
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


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. `files` is {relative name: {bytes, sha256}}, `digest` is the digest of `files`."""

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
    """An entry of the log: an alias moved from version `before` (None for a new alias) to version `after`.

    A refused promotion is an entry from the alias's version to itself.
    """

    model: str
    alias: str
    kind: Literal["move", "rollback", "refusal"]
    before: int | None
    after: int
    verdict: dict[str, Any] | None
    forced: bool
    reason: str | None
    user: str
    time: str


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model: the numbers of its versions, and {alias: number}."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]


class Catalog:
    """Read and write the tables within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def version(self, model: str, number: int) -> Version:
        """Return a version; raise RecipeError if there is none or it was deleted."""
        number_64_bit = min(max(number, 0), 2**63 - 1)  # SQLite refuses larger integers
        found = self._versions("model = ? AND number = ?", model, number_64_bit)
        if not found:
            raise self.not_found_error(model, f"version {number}")
        return found[0]

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model, oldest first."""
        return self._versions("model = ? ORDER BY number", model)

    def find_identical(self, model: str, files: dict[str, Any], facts: dict[str, Any]) -> Version | None:
        """Return the version with the same files and facts, or None."""
        condition = "model = ? AND files_digest = ? AND facts_digest = ?"
        return next(iter(self._versions(condition, model, digest_of(files), digest_of(facts))), None)

    def _versions(self, condition: str, *values: str | int) -> list[Version]:
        rows = self._run(f"SELECT entry, digest FROM versions WHERE deleted IS NULL AND {condition}", values)
        return [Version(**_decode_entry(*row)) for row in rows]

    def require_model(self, model: str) -> None:
        """Raise RecipeError if a model never had a version."""
        if not self.highest_number(model):
            raise self.not_found_error(model, "version")

    def highest_number(self, model: str) -> int:
        """Return the highest number that a model has used, deleted versions included; 0 if there is no such model."""
        return int(self._run("SELECT coalesce(max(number), 0) FROM versions WHERE model = ?", (model,)).fetchone()[0])

    def insert(self, version: Version) -> None:
        """Add a version."""
        entry = asdict(version)
        key = (version.model, version.number, version.digest, digest_of(version.facts))
        self._run("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, NULL)", (*key, digest_of(entry), json.dumps(entry)))

    def mark_deleted(self, version: Version, time: str) -> None:
        """Hide a version. Its number is not used again."""
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
        """Return the numbers of a model's versions, without the deleted ones."""
        rows = self._run("SELECT number FROM versions WHERE model = ? AND deleted IS NULL", (model,))
        return {number for (number,) in rows}

    def aliases(self, model: str) -> dict[str, int]:
        """Return {alias: number} of a model, sorted by alias."""
        targets = {move.alias: move.after for move in self.moves(model)}
        return dict(sorted(targets.items()))

    def moves(self, model: str, alias: str | None = None) -> list[Move]:
        """Return each change of a model's aliases, or of one alias, oldest first."""
        query = "SELECT entry, digest FROM moves WHERE model = ? AND alias = coalesce(?, alias) ORDER BY id"
        return [Move(**_decode_entry(*row)) for row in self._run(query, (model, alias))]

    def append_move(self, move: Move) -> None:
        """Add a move to the log; this moves the alias."""
        entry = json_roundtrip(asdict(move))
        row = (move.model, move.alias, digest_of(entry), json.dumps(entry))
        self._run("INSERT INTO moves VALUES (NULL, ?, ?, ?, ?)", row)

    def not_found_error(self, model: str, target: str) -> RecipeError:
        """Return the error for a missing `target` ("version 3", "alias `x`") of a model; its hint lists what exists."""
        code = "not-in-registry"
        if not self.highest_number(model):
            names = ", ".join(known.name for known in self.models())
            hint = f"registered models: {names}" if names else "the registry is empty; `tunesmith promote` adds a model"
            return RecipeError(f"there is no model `{model}` in the registry", hint=hint, code=code)
        numbers, aliases = sorted(self.live_numbers(model)), self.aliases(model)
        listed = ", ".join([*map(str, numbers), *(f"{alias} ({number})" for alias, number in aliases.items())])
        hint = f"versions and aliases: {listed or 'none, all were deleted'}"
        return RecipeError(f"`{model}` has no {target}", hint=hint, code=code)


def alias_history(moves: Iterable[Move]) -> list[int]:
    """Return the versions that led to an alias's current one, oldest first, the current one last.

    A rollback removes the versions after its target. A move to the current version adds nothing.
    """
    history: list[int] = []
    for move in moves:
        if move.kind == "rollback":
            history.pop()
            while history and history[-1] != move.after:
                history.pop()
        if not history or history[-1] != move.after:
            history.append(move.after)
    return history


def json_roundtrip(value: Any) -> Any:
    """Convert a value to JSON and back, so that a value compares equal to its stored form.

    NaN and infinity become their names, because a malformed verdict must be recordable. Lone surrogates become `?`.
    """
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"), parse_constant=str)


def _decode_entry(text: str, digest: str) -> Any:
    """Parse a stored entry; raise sqlite3.DatabaseError if it is not JSON or does not match its digest."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"{error} in {text[:40]!a}") from error
    if digest_of(value) != digest:
        raise sqlite3.DatabaseError(f"{text[:40]!a} does not match its digest")
    return value
