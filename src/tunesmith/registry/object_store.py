"""The registry's files: content-addressed objects, and version folders made of hard links to them."""

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
    seal_folder,
    sync_folder,
    temporary_path,
)
from tunesmith.core.locks import try_lock

Files = dict[str, dict[str, Any]]


class ObjectStore:
    """`objects/ab/SHA256` and `models/NAME/VERSION/` below the root of a registry."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Return where the object of a digest lies."""
        return self.root / "objects" / sha256[:2] / sha256

    def folder(self, model: str, number: int) -> Path:
        """Return the folder of a version."""
        return self.root / "models" / model / str(number)

    @contextlib.contextmanager
    def staged(self, model: str, source: Path, files: Files, facts: dict[str, Any]) -> Iterator[Path]:
        """Give a sealed folder beside the versions of `model`, one rename away from being one.

        Raises:
            DamagedFile: a file of `source` is no longer what `files` says.
        """
        folder = temporary_path(self.root / "models" / model / "incoming")
        _make_folder(folder.parent)
        folder.mkdir()
        try:
            for name, entry in files.items():
                interrupt.check()
                self._put(source / name, entry["sha256"])
                self._link(entry["sha256"], folder / name)
            if (
                seal_folder(folder, model=model, facts=facts)["files"] != files
            ):  # file systems may fold case or normalise names
                raise DamagedFile("was not stored as it is", where=str(source))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _put(self, source: Path, sha256: str) -> None:
        """Store one file; an object that is there already is kept if it is whole and replaced if not."""
        final = self.path(sha256)
        if final.exists() and digest_file(final) == sha256:
            return
        _make_folder(final.parent)
        temporary = temporary_path(final)
        try:
            _copy(source, temporary)
            if digest_file(temporary) != sha256:
                raise DamagedFile("changed while it was being added", where=str(source), hint="add it again")
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
        except OSError:  # no hard links here, too many of them, or an object of another user
            _copy(self.path(sha256), target)

    def shared_lock(self) -> contextlib.AbstractContextManager[bool]:
        """Keep others from sweeping while files of this process are not yet, or no longer, in the database."""
        return try_lock(self.root / ".lock", shared=True)

    def try_exclusive_lock(self) -> contextlib.AbstractContextManager[bool]:
        """Yield whether nobody else is adding or deleting; if so, keep it like that inside.

        On a file system without locks this is never so, and nobody ever sweeps.
        """
        return try_lock(self.root / ".lock")

    def collect_garbage(self, wanted: set[str], is_dead: Callable[[str, int], bool]) -> None:
        """Remove what killed writers left behind: temporary files, dead version folders, objects of no version.

        Files of other users may not be removable; they stay and only take disk space. The caller must hold
        `try_exclusive_lock`.
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
    """Return {relative name: {bytes, sha256}} of a folder that may become a version.

    Raises:
        RecipeError: it is no folder, has no files, or holds something other than plain files and folders.
        DamagedFile: it has a manifest, and is not what that says.
    """
    if not folder.is_dir():
        raise RecipeError("is not a folder", where=str(folder))
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RecipeError(
                "is neither a plain file nor a folder", where=str(path), hint="copy the folder with its links followed"
            )
        if os.fsencode(path.name).decode("utf-8", "replace") != path.name:
            raise RecipeError(f"the name {path.name!a} is not UTF-8", where=str(folder), hint="rename the file")
    files = _sealed_files(folder) if (folder / MANIFEST).exists() else list_files(folder)
    if not files:
        raise RecipeError("has no files", where=str(folder))
    return files


def _sealed_files(folder: Path) -> Files:
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise RecipeError("is a name that the registry needs itself", where=str(folder / MANIFEST), hint="rename it")
    files: Files = check_folder(folder)["files"]
    return files


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with contextlib.suppress(OSError):  # some file systems have no modes; the digests find what is altered anyway
        target.chmod(0o444)


def _make_folder(folder: Path) -> None:
    """Make a folder two levels below the root, and its entries durable."""
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    sync_folder(folder.parent.parent)
