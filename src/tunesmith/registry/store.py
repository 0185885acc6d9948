"""The registry: append-only versions, movable aliases, and a log of every move.

`add` writes the files first and commits last, so a crash leaves at most files without a version; the next `add` removes
them. `delete` commits first and removes the files last.
"""

import os
import pwd
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import MANIFEST, check_files, digest_of, read_json, translate_enospc
from tunesmith.core.locks import try_lock
from tunesmith.core.user_folders import registry_root
from tunesmith.registry.catalog import Catalog, Model, Move, Version, alias_history, json_roundtrip
from tunesmith.registry.database import Database
from tunesmith.registry.names import check_alias, check_name, looks_like_reference, parse_reference
from tunesmith.registry.object_store import ObjectStore, list_addable_files

__all__ = ["Model", "Move", "Registry", "Version", "looks_like_reference"]


class Registry:
    """Versions, aliases and their log in one folder. Several processes may use it at the same time."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._database = Database(self.root)
        self._store = ObjectStore(self.root)
        # Shared while this process has files that are not in the database, exclusive while it collects garbage.
        self._lock = self.root / ".lock"

    @classmethod
    def default(cls) -> "Registry":
        """Open this user's registry; docs/cli.md lists where it is."""
        return cls(registry_root())

    def add(self, name: str, folder: Path, *, facts: dict[str, Any]) -> Version:
        """Store a folder as the next version of a model, or return the existing version with the same files and facts.

        Keep times out of `facts`: with them no two versions would be the same.

        Raises:
            RecipeError: the name is invalid, or the folder cannot become a version.
            DamagedFile: a file differs from the folder's manifest or changed during the copy; or the registry is
                damaged.
            DoesNotFit: the disk is full.
        """
        check_name(name)
        facts, files = json_roundtrip(facts), list_addable_files(folder)
        with self._database.writing() as catalog:
            if existing := catalog.find_identical(name, files, facts):
                return existing
        self._collect_garbage()
        with (
            translate_enospc(self.root),
            try_lock(self._lock, shared=True),
            self._store.staged(name, folder, files, facts) as staged,
            self._database.writing() as catalog,
        ):
            if existing := catalog.find_identical(name, files, facts):  # another process has just added it
                return existing
            version = Version(name, catalog.highest_number(name) + 1, digest_of(files), files, facts, _now())
            self._store.publish(staged, self.folder(version))
            catalog.insert(version)
            return version

    def move(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        verdict: dict[str, Any] | None,
        reason: str | None,
        forced: bool = False,
        expected: int | EllipsisType | None = ...,
    ) -> None:
        """Point an alias at a version, and log the move even if the alias points there already.

        Args:
            expected: the version that the alias must point at now, None if the alias must be new; by default any.

        Raises:
            RecipeError: a name is invalid, there is no such version, or a forced move has no reason.
            TunesmithError: the alias does not point at `expected`; nothing was changed.
        """
        check_name(name)
        check_alias(alias)
        if forced and not (reason or "").strip():
            hint = "give the reason; it is kept in the log"
            raise RecipeError("a forced move needs a reason", where=f"{name}@{alias}", hint=hint, code="force-reason")
        with self._database.reading() as catalog:  # fail before a registry is created
            catalog.version(name, version)
        with self._database.writing() as catalog:
            catalog.version(name, version)
            before = catalog.aliases(name).get(alias)
            if not isinstance(expected, EllipsisType) and before != expected:
                raise _unexpected_target_error(catalog, name, alias, expected)
            catalog.append_move(Move(name, alias, "move", before, version, verdict, forced, reason, _user(), _now()))

    def log_refusal(self, name: str, alias: str, version: int, *, verdict: dict[str, Any] | None, reason: str) -> None:
        """Log that an alias was not moved, because the candidate is not better than its version.

        Raises:
            TunesmithError: the alias does not point at this version any more (`alias-moved`); nothing was logged.
        """
        with self._database.writing() as catalog:
            if catalog.aliases(name).get(alias) != version:
                raise _unexpected_target_error(catalog, name, alias, version)
            catalog.append_move(Move(name, alias, "refusal", version, version, verdict, False, reason, _user(), _now()))

    def rollback(self, name: str, alias: str, *, reason: str | None = None) -> Version:
        """Point an alias at the version before its current one, log the move, and return that version.

        A second rollback goes one version further back. Deleted versions are skipped.

        Raises:
            RecipeError: there is no such alias.
            TunesmithError: the alias never pointed at an earlier version that still exists.
        """
        check_name(name)
        check_alias(alias)
        with self._database.reading() as catalog:  # fail before a registry is created
            catalog.require_model(name)
        with self._database.writing() as catalog:
            history = alias_history(catalog.moves(name, alias))
            if not history:
                raise catalog.not_found_error(name, f"alias `{alias}`")
            current, live = history[-1], catalog.live_numbers(name)
            after = next((number for number in reversed(history) if number in live and number != current), None)
            if after is None:
                message = f"there is no version before version {current} to roll back to"
                hint = f"`tunesmith models {name}` lists the versions and the history of the alias"
                raise TunesmithError(message, where=f"{name}@{alias}", hint=hint, code="no-earlier-version")
            catalog.append_move(Move(name, alias, "rollback", current, after, None, False, reason, _user(), _now()))
            return catalog.version(name, after)

    def resolve(self, reference: str) -> Version:
        """Return the version that `NAME@ALIAS` or `NAME@3` refers to; raise RecipeError if there is none."""
        name, target = parse_reference(reference)
        with self._database.reading() as catalog:
            number = target if isinstance(target, int) else catalog.aliases(name).get(target)
            if number is None:
                raise catalog.not_found_error(name, f"alias `{target}`")
            return catalog.version(name, number)

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the version number that an alias points at, None if there is no such alias (`expected` of `move`)."""
        version = self.alias_version(name, alias)
        return None if version is None else version.number

    def alias_version(self, name: str, alias: str) -> Version | None:
        """Return the version that an alias points at, None if there is no such alias."""
        check_name(name)
        check_alias(alias)
        with self._database.reading() as catalog:
            number = catalog.aliases(name).get(alias)
            return None if number is None else catalog.version(name, number)

    def verify(self, version: Version) -> None:
        """Check a version's folder against the database; raise DamagedFile, which names the file, if they differ.

        The folder's own manifest is not trusted: it could have been rewritten together with an altered file.
        """
        folder = self.folder(version)
        check_files(folder, version.files)
        expected = {"model": version.model, "facts": version.facts, "files": version.files}
        if not (folder / MANIFEST).exists() or read_json(folder / MANIFEST) != expected:
            hint = "delete this version and add the model again"
            raise DamagedFile("is missing or was altered", where=str(folder / MANIFEST), hint=hint)

    def folder(self, version: Version) -> Path:
        """Return the version's folder. PEFT or transformers loads it like the folder that was added."""
        return self.root / "models" / version.model / str(version.number)

    def models(self) -> list[Model]:
        """Return all models by name."""
        with self._database.reading() as catalog:
            return catalog.models()

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a model, oldest first; raise RecipeError if there is no such model."""
        check_name(name)
        with self._database.reading() as catalog:
            catalog.require_model(name)
            return catalog.versions(name)

    def find_by_fact(self, key: str, value: object) -> list[Version]:
        """Return the versions whose `facts[key]` equals `value`, by model, the latest version of each first."""
        with self._database.reading() as catalog:
            names = [model.name for model in catalog.models()]
            return [v for name in names for v in reversed(catalog.versions(name)) if v.facts.get(key) == value]

    def history(self, name: str, alias: str | None = None) -> list[Move]:
        """Return each change of a model's aliases, or of one alias, oldest first; raise RecipeError if unknown."""
        check_name(name)
        if alias is not None:
            check_alias(alias)
        with self._database.reading() as catalog:
            catalog.require_model(name)
            return catalog.moves(name, alias)

    def delete(self, name: str, version: int) -> None:
        """Delete a version and the files that no other version uses. The log stays and the number is not used again.

        Raises:
            RecipeError: there is no such version, or an alias points at it.
        """
        check_name(name)
        with self._database.reading() as catalog:  # fail before a registry is created
            catalog.version(name, version)
        with try_lock(self._lock, shared=True):
            with self._database.writing() as catalog:
                doomed = catalog.version(name, version)
                aliases = [alias for alias, number in catalog.aliases(name).items() if number == version]
                if aliases:
                    message = f"cannot be deleted: {', '.join(aliases)} points at it"
                    hint = "move the alias to another version first"
                    raise RecipeError(message, where=str(doomed), hint=hint, code="alias-in-use")
                catalog.mark_deleted(doomed, _now())
            self._store.remove(self.folder(doomed))
        self._collect_garbage()

    def _collect_garbage(self) -> None:
        """Remove leftovers, unless another process is adding: its files are not in the database yet.

        On a file system without locks, nothing is ever removed.
        """
        with try_lock(self._lock) as locked:
            if not locked:
                return
            with self._database.reading() as catalog:
                names = [model.name for model in catalog.models()]
                versions = [version for name in names for version in catalog.versions(name)]
                highest = {name: catalog.highest_number(name) for name in names}
                deleted = catalog.deleted()
            wanted = {entry["sha256"] for version in versions for entry in version.files.values()}
            # A killed `add` leaves a folder with the next number, a killed `delete` the folder of a deleted version.
            # No other folder is touched.
            self._store.collect_garbage(wanted, lambda name, n: (name, n) in deleted or n == highest.get(name, 0) + 1)


def _unexpected_target_error(catalog: Catalog, name: str, alias: str, expected: int | None) -> TunesmithError:
    moves = [move for move in catalog.moves(name, alias) if move.kind != "refusal"]
    actual = f"version {moves[-1].after} (moved by {moves[-1].user}, {moves[-1].time})" if moves else "no alias"
    wanted = "no alias" if expected is None else f"version {expected}"
    message = f"expected {wanted}, found {actual}; nothing was moved"
    hint = "another process may have moved the alias: check it and repeat the move"
    return TunesmithError(message, where=f"{name}@{alias}", hint=hint, code="alias-moved")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name  # not $USER, which the user can set to anything
    except KeyError:  # in a container, the user may have no name
        return f"uid {os.getuid()}"
