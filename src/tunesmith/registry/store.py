"""The registry: append-only versions, aliases that move, and a log of every move.

Files are written first and the transaction that makes them visible last, so a crash leaves at most files that no
version names; the next `add` removes them. Deleting goes the other way round.
"""

import os
import pwd
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import (
    MANIFEST,
    check_files,
    digest_of,
    read_json,
    remove_folder,
    sync_folder,
    translate_enospc,
)
from tunesmith.core.user_folders import registry_root
from tunesmith.registry.catalog import Catalog, Model, Move, Version, alias_history, json_roundtrip
from tunesmith.registry.database import Database
from tunesmith.registry.names import check_alias, check_name, looks_like_reference, parse_reference
from tunesmith.registry.object_store import ObjectStore, list_addable_files

__all__ = ["Model", "Move", "Registry", "Version", "looks_like_reference"]


class Registry:
    """The versions, aliases and log below one folder. Any number of processes may use it at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._database = Database(self.root)
        self._store = ObjectStore(self.root)

    @classmethod
    def default(cls) -> "Registry":
        """Return the registry of this user; docs/cli.md says where it is."""
        return cls(registry_root())

    def add(self, name: str, folder: Path, *, facts: dict[str, Any]) -> Version:
        """Store a folder as the next version of a model, or return the version that is the same already.

        The same: the same files and the same facts. So `facts` had better hold no time of day.

        Raises:
            RecipeError: the name is not allowed, or the folder cannot be a version.
            DamagedFile: the folder is not what its own manifest says, or changed meanwhile; or the registry is damaged.
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
            self._store.shared_lock(),
            self._store.staged(name, folder, files, facts) as staged,
            self._database.writing() as catalog,
        ):
            if existing := catalog.find_identical(name, files, facts):  # another process added it meanwhile
                return existing
            version = Version(name, catalog.highest_number(name) + 1, digest_of(files), files, facts, _now())
            self._publish(staged, self.folder(version))
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
        """Point an alias at a version and log it; also when it points there already.

        Args:
            expected: the version the alias must point at now (None: the alias must be new); left out, any.

        Raises:
            RecipeError: a name is not allowed, there is no such version, or a forced move has no reason.
            TunesmithError: the alias does not point at `expected`. Nothing was changed.
        """
        check_name(name)
        check_alias(alias)
        if forced and not (reason or "").strip():
            raise RecipeError("a forced move needs a reason", where=f"{name}@{alias}")
        with self._database.reading() as catalog:  # so that a refusal makes no registry
            catalog.version(name, version)
        with self._database.writing() as catalog:
            catalog.version(name, version)
            before = catalog.aliases(name).get(alias)
            if not isinstance(expected, EllipsisType) and before != expected:
                raise _unexpected_target_error(catalog, name, alias, expected)
            catalog.append_move(Move(name, alias, "move", before, version, verdict, forced, reason, _user(), _now()))

    def rollback(self, name: str, alias: str, *, reason: str | None = None) -> Version:
        """Point an alias at the version before its present one, log it, and return that version.

        Repeated, it goes further back. Versions deleted since are passed over.

        Raises:
            RecipeError: there is no such alias.
            TunesmithError: there is nothing before the present version.
        """
        check_name(name)
        check_alias(alias)
        with self._database.reading() as catalog:  # so that a refusal makes no registry
            catalog.require_model(name)
        with self._database.writing() as catalog:
            way = alias_history(catalog.moves(name, alias))
            if not way:
                raise catalog.not_found_error(name, f"alias `{alias}`")
            present, live = way[-1], catalog.live_numbers(name)
            after = next((number for number in reversed(way) if number in live and number != present), None)
            if after is None:
                raise TunesmithError(
                    f"version {present} is the first; there is no earlier one", where=f"{name}@{alias}"
                )
            catalog.append_move(Move(name, alias, "rollback", present, after, None, False, reason, _user(), _now()))
            return catalog.version(name, after)

    def resolve(self, reference: str) -> Version:
        """Return the version of `NAME@ALIAS` or `NAME@3`; raise RecipeError if there is none."""
        name, target = parse_reference(reference)
        with self._database.reading() as catalog:
            number = target if isinstance(target, int) else catalog.aliases(name).get(target)
            if number is None:
                raise catalog.not_found_error(name, f"alias `{target}`")
            return catalog.version(name, number)

    def alias_target(self, name: str, alias: str) -> int | None:
        """Return the number an alias points at, None where there is no such alias: what `move` can expect."""
        check_name(name)
        check_alias(alias)
        with self._database.reading() as catalog:
            return catalog.aliases(name).get(alias)

    def verify(self, version: Version) -> None:
        """Raise DamagedFile, naming the file, unless the version's folder is what was added.

        The folder is compared with the database: a manifest rewritten to fit an altered file does not help.
        """
        folder = self.folder(version)
        check_files(folder, version.files)
        expected = {"model": version.model, "facts": version.facts, "files": version.files}
        if not (folder / MANIFEST).exists() or read_json(folder / MANIFEST) != expected:
            raise DamagedFile("is missing or was altered", where=str(folder / MANIFEST))

    def folder(self, version: Version) -> Path:
        """Return the version's folder, which loads as the plain PEFT or transformers folder that was added."""
        return self._store.folder(version.model, version.number)

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
        """Return the versions whose `facts` have this value of a key, model by model, the latest version first."""
        with self._database.reading() as catalog:
            names = [model.name for model in catalog.models()]
            return [v for name in names for v in reversed(catalog.versions(name)) if v.facts.get(key) == value]

    def history(self, name: str, alias: str | None = None) -> list[Move]:
        """Return the log of a model or of one of its aliases, oldest first; raise RecipeError without such a model."""
        check_name(name)
        if alias is not None:
            check_alias(alias)
        with self._database.reading() as catalog:
            catalog.require_model(name)
            return catalog.moves(name, alias)

    def delete(self, name: str, version: int) -> None:
        """Delete a version and the files that no other version has. Its number is not used again, its log stays.

        Raises:
            RecipeError: there is no such version, or an alias points at it.
        """
        check_name(name)
        with self._database.reading() as catalog:  # so that a refusal makes no registry
            catalog.version(name, version)
        with self._store.shared_lock():
            with self._database.writing() as catalog:
                found = catalog.version(name, version)
                aliases = [alias for alias, number in catalog.aliases(name).items() if number == version]
                if aliases:
                    what = f"is what {', '.join(aliases)} points at"
                    raise RecipeError(what, where=str(found), hint="move the alias first")
                catalog.mark_deleted(found, _now())
            if self.folder(found).exists():
                remove_folder(self.folder(found))
        self._collect_garbage()

    def _publish(self, staged: Path, final: Path) -> None:
        if final.exists():  # of a writer killed between this rename and its commit
            remove_folder(final)
        staged.rename(final)
        sync_folder(final.parent)

    def _collect_garbage(self) -> None:
        """Remove leftovers, unless somebody is adding right now, whose files are not in the database yet."""
        with self._store.try_exclusive_lock() as locked:
            if not locked:
                return
            with self._database.reading() as catalog:
                names = [model.name for model in catalog.models()]
                versions = [version for name in names for version in catalog.versions(name)]
                highest = {name: catalog.highest_number(name) for name in names}
                deleted = catalog.deleted()
            wanted = {entry["sha256"] for version in versions for entry in version.files.values()}
            # A killed `add` leaves the next number, a killed `delete` one that is marked; no other folder is touched.
            self._store.collect_garbage(wanted, lambda name, n: (name, n) in deleted or n == highest.get(name, 0) + 1)


def _unexpected_target_error(catalog: Catalog, name: str, alias: str, expected: int | None) -> TunesmithError:
    moves = catalog.moves(name, alias)
    last = f"points at {moves[-1].after} (by {moves[-1].user}, {moves[-1].time})" if moves else "does not exist"
    what = "not exist" if expected is None else f"point at {expected}"
    return TunesmithError(f"{last}, but was to {what}; nothing was moved", where=f"{name}@{alias}", hint="decide again")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name  # not $USER, which says what one wants it to
    except KeyError:  # containers run under numbers without a name
        return f"uid {os.getuid()}"
