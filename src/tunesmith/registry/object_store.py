"""The registry's files: content-addressed objects, and version folders of hard links to them."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import (
    MANIFEST,
    check_folder,
    digest_file,
    is_temporary,
    list_files,
    read_json,
    remove_folder,
    seal_folder,
    sync_folder,
    temporary_path,
)

Files = dict[str, dict[str, Any]]


class ObjectStore:
    """Store files as `objects/ab/SHA256` and versions as `models/NAME/VERSION/` in the root folder of a registry."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Return the path of the object with this digest."""
        return self.root / "objects" / sha256[:2] / sha256

    @contextlib.contextmanager
    def staged(self, model: str, source: Path, files: Files, facts: dict[str, Any]) -> Iterator[Path]:
        """Build a sealed folder next to the model's versions, ready to be renamed into place; remove it afterwards.

        Raises:
            DamagedFile: a file of `source` does not match its digest in `files`.
        """
        folder = temporary_path(self.root / "models" / model / "incoming")
        _make_folder(folder.parent)
        folder.mkdir()
        try:
            for name, entry in files.items():
                interrupt.check()
                self._put(source / name, entry["sha256"])
                self._link(entry["sha256"], folder / name)
            stored = seal_folder(folder, model=model, facts=facts)["files"]
            if stored != files:  # the file system may have changed the case of names, or normalised them
                changed = ", ".join(sorted(files.keys() ^ stored.keys()))
                hint = f"rename these files to names that the registry's file system keeps: {changed}"
                raise DamagedFile("its files changed when they were stored", where=str(source), hint=hint)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, final: Path) -> None:
        """Rename a staged folder to that of its version."""
        self.remove(final)  # left by a writer that was killed between the rename and the commit
        staged.rename(final)
        sync_folder(final.parent)

    def remove(self, folder: Path) -> None:
        """Remove the folder of a version if it exists."""
        if folder.exists():
            remove_folder(folder)

    def _put(self, source: Path, sha256: str) -> None:
        """Store one file. An existing object is kept if it matches its digest, and replaced otherwise."""
        final = self.path(sha256)
        if final.exists() and digest_file(final) == sha256:
            return
        _make_folder(final.parent)
        temporary = temporary_path(final)
        try:
            _copy(source, temporary)
            if digest_file(temporary) != sha256:
                hint = "add it again when no program writes to it"
                raise DamagedFile("changed while it was being added", where=str(source), hint=hint)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(final.parent)

    def _link(self, sha256: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.path(sha256), target)
        except OSError:  # the file system has no hard links, the object has too many, or it belongs to another user
            _copy(self.path(sha256), target)

    def collect_garbage(self, wanted: set[str], is_dead: Callable[[str, int], bool]) -> None:
        """Remove the leftovers of killed writers: temporary files, dead version folders, objects without a version.

        Files of other users may not be removable. They stay and cost only disk space. The caller holds the lock.

        Args:
            wanted: digests of the objects to keep.
            is_dead: (model, number) -> whether this version folder is a leftover.
        """
        for path in self.root.glob("models/*/*"):
            number = int(path.name) if path.name.isascii() and path.name.isdigit() else 0
            if is_temporary(path) or (number and is_dead(path.parent.name, number)):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob("objects/*/*"):
            if path.name not in wanted:
                with contextlib.suppress(OSError):
                    path.unlink()


def list_addable_files(folder: Path) -> Files:
    """Return {relative name: {bytes, sha256}} of a folder that can become a version.

    Raises:
        RecipeError: not a folder, no files in it, or something other than plain files and folders.
        DamagedFile: a file differs from the folder's manifest.
    """
    code, hint = "bad-version-folder", "give the folder of a model or an adapter"
    if not folder.is_dir():
        raise RecipeError("is not a folder", where=str(folder), hint=hint, code=code)
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            hint = "add a copy of the folder without links: cp -rL"
            raise RecipeError("is neither a plain file nor a folder", where=str(path), hint=hint, code=code)
        if os.fsencode(path.name).decode("utf-8", "replace") != path.name:
            message = f"the file name {path.name!a} is not UTF-8"
            raise RecipeError(message, where=str(folder), hint="rename the file", code=code)
    files = _sealed_files(folder) if (folder / MANIFEST).exists() else list_files(folder)
    if not files:
        raise RecipeError("has no files", where=str(folder), hint=hint, code=code)
    return files


def _sealed_files(folder: Path) -> Files:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        message = f"is not a manifest of tunesmith, and the registry uses the name {MANIFEST} itself"
        hint = "rename or remove the file"
        raise RecipeError(message, where=str(folder / MANIFEST), hint=hint, code="bad-version-folder")
    files: Files = check_folder(folder)["files"]
    return files


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with contextlib.suppress(OSError):  # some file systems have no modes; the digests reveal changes anyway
        target.chmod(0o444)


def _make_folder(folder: Path) -> None:
    """Make a folder two levels below the root and flush both of its parents to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    sync_folder(folder.parent.parent)
