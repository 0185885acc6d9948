"""Write files and folders atomically: temporary sibling -> fsync -> SHA-256 manifest -> rename.

A crash leaves the old version or the new one, never a part. All files that tunesmith keeps are written here.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError

MANIFEST = "manifest.json"
_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for this disk",
}
# safetensors and tokenizers are written in Rust and give the errno only in the message.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
# Names of files and folders that are being written or deleted: `.NAME.tmp-1a2b3c4d`.
_TEMPORARY = re.compile(r"\.(?P<final>[^/]+)\.(?:tmp|trash)-[0-9a-f]{8}")
_PRIVATE = 0o600
# `json.dumps` would build a new encoder for every value.
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(_canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file that tunesmith wrote; raise DamagedFile if it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedFile(f"is not readable JSON ({error})", where=str(path)) from error


def temporary_path(final: Path, kind: Literal["tmp", "trash"] = "tmp") -> Path:
    """Return a new hidden path in the folder of `final`, to write to before a rename, or to rename to for deletion.

    `remove_leftovers` finds such paths after a crash.
    """
    return final.with_name(f".{final.name}.{kind}-{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path) -> bool:
    """Whether a path has a name that `temporary_path` or a deletion gave it."""
    return _TEMPORARY.fullmatch(path.name) is not None


def without_temporary_names(text: str) -> str:
    """Replace the temporary names in a path or message by the final names."""
    return _TEMPORARY.sub(r"\g<final>", text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new one.

    Raises:
        RecipeError: `path` is a folder or a device; a rename would fail or replace it.
        DoesNotFit: the disk is full.
    """
    if path.exists() and not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not a regular file"
        raise RecipeError(problem, where=str(path), code="wrong-path", hint="name a file to write")
    temporary = temporary_path(path)
    with translate_enospc(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raise ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Stream chunks to a file and fsync it. The folder's manifest makes the file final."""
    with translate_enospc(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=2**16) as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {relative path: {bytes, sha256}} of all files below a folder, without its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in paths
    }


@contextlib.contextmanager
def new_folder(final: Path, **facts: Any) -> Iterator[Path]:
    """Yield a temporary folder to fill; on exit, seal it with a manifest and rename it to `final`.

    An existing `final` is replaced. After a crash, `final` is absent or complete.

    Args:
        facts: more entries for the manifest.
    """
    temporary = temporary_path(final)
    with translate_enospc(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            seal_folder(temporary, **facts)
            trash = _set_aside(final) if final.exists() else None
            temporary.rename(final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if trash is not None:
            shutil.rmtree(trash, ignore_errors=True)


def seal_folder(folder: Path, **facts: Any) -> dict[str, Any]:
    """Fsync every file below a folder, write its manifest last, and return the manifest.

    Files with mode 600, as safetensors and tempfile write them, become as readable as the folder.
    """
    readable = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            if stat.S_IMODE(path.stat().st_mode) == _PRIVATE:
                path.chmod(readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    manifest = {**facts, "files": list_files(folder)}
    write_json(folder / MANIFEST, manifest)
    return manifest


def remove_folder(folder: Path) -> None:
    """Rename a folder and remove it, so that a crash never leaves a part of it under its name."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    return folder.rename(temporary_path(folder, "trash"))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a killed writer left in `folder` or below it."""
    for path in filter(is_temporary, list(folder.rglob(".*"))):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # it may be gone with its folder
            path.unlink(missing_ok=True)


def check_folder(folder: Path, *, may_change: Collection[str] = ()) -> dict[str, Any]:
    """Compare every file of a folder with its manifest, and return the manifest.

    Args:
        may_change: the names of files that users may edit.

    Raises:
        DamagedFile: the manifest is missing or unreadable, or a file is missing, altered or added.
    """
    if not (folder / MANIFEST).exists():
        hint = "the folder was never finished, or the file was removed"
        raise DamagedFile(f"has no {MANIFEST}", where=str(folder), hint=hint)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedFile("lists no files", where=str(folder / MANIFEST))
    check_files(folder, manifest["files"], may_change=may_change)
    return manifest


def check_files(folder: Path, expected: dict[str, dict[str, Any]], *, may_change: Collection[str] = ()) -> None:
    """Raise DamagedFile unless the files below `folder` are exactly those of `expected`, apart from `may_change`."""
    actual = list_files(folder)
    for name in sorted((expected.keys() | actual.keys()).difference(may_change)):
        if name not in actual:
            raise DamagedFile("is missing", where=str(folder / name))
        if name not in expected:
            raise DamagedFile("is not in the manifest", where=str(folder / name))
        if actual[name] != expected[name]:
            found, recorded = (files[name]["sha256"][:12] for files in (actual, expected))
            problem = f"is damaged or was altered: SHA-256 {found}, expected {recorded}"
            raise DamagedFile(problem, where=str(folder / name))


@contextlib.contextmanager
def translate_enospc(path: Path) -> Iterator[None]:
    """Translate out-of-space errors (ENOSPC, EDQUOT, EFBIG) of the system or a library into DoesNotFit."""
    try:
        yield
    except Exception as error:  # the errors of safetensors and tokenizers have no common class
        disk_full = out_of_space_error(errno_of(error), path)
        if disk_full is None:
            raise
        raise disk_full from error


def out_of_space_error(number: int | None, path: Path) -> DoesNotFit | None:
    """Return the error for an errno that means that the disk of `path` is full; None for another errno."""
    if number not in _OUT_OF_SPACE:
        return None
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free / 2**30
    message = f"{_OUT_OF_SPACE[number]} ({free:.1f} GiB free); earlier files are complete"
    hint = "free some space and run the same command again"
    return DoesNotFit(message, where=str(path), code="disk-full", hint=hint)


def errno_of(error: BaseException) -> int | None:
    """Return an exception's errno, also if a Rust library gives it in the message; None if there is none."""
    if isinstance(error, OSError):
        return error.errno
    match = _RUST_ERROR.search(str(error))
    return int(match.group(1)) if match else None
