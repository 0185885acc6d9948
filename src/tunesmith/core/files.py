"""Files that are either whole or absent: temporary sibling -> fsync -> sha256 manifest -> rename.

Everything tunesmith keeps is written through this module, so one place decides what "written" means.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tunesmith.core.errors import DamagedFile, DoesNotFit, Interrupted, RecipeError

MANIFEST = "manifest.json"
_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for this disk",
}
# safetensors and tokenizers, which are written in Rust, tell the system's error in their text alone.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_RANDOM = "[0-9a-f]" * 8
_PRIVATE = 0o600
# `json.dumps` would make an encoder anew for every value.
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(_canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file that tunesmith wrote; raise DamagedFile if it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedFile(f"is not readable JSON ({error})", where=str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new, never a part.

    Raises:
        RecipeError: `path` is a folder or a device, which a rename would fail on or replace.
        DoesNotFit: the disk is full.
    """
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file"
        raise RecipeError(what, where=str(path), code="wrong-path", hint="name a file to write")
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
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
    """Write a JSON file atomically. NaN and infinity are refused, because JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield one value a line from a JSONL file that tunesmith wrote."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _value(line, f"{path}:{number}")


def _value(line: bytes, where: str, hint: str | None = None) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise DamagedFile(f"is not readable JSON ({error})", where=where, hint=hint) from error


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, streaming, and fsync. The folder's manifest makes it final."""
    write_chunks(path, (json_line(value).encode() for value in values))


def write_chunks(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file piece by piece, and fsync. The folder's manifest makes it final."""
    with translate_enospc(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=2**16) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())


def json_line(value: Any) -> str:
    """Return one line of JSONL, line end included."""
    return _line(value) + "\n"


def read_whole_lines(path: Path) -> list[Any]:
    """Return the values of a JSONL log that may end in a half-written line, and cut that line off.

    Raises:
        DamagedFile: another line is not whole.
    """
    if not path.exists():
        return []
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end != len(whole):
        os.truncate(path, end)
    # Not `splitlines`: to that U+0085 and U+2028 end a line too, which JSON leaves as they are.
    lines = whole[:end].split(b"\n")[:-1]
    hint = "it is a log: move the file away, and the run goes on without what it says"
    return [_value(line, f"{path}:{number}", hint) for number, line in enumerate(lines, 1)]


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {relative name: {bytes, sha256}} of all files below a folder, its manifest left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in paths
    }


@contextlib.contextmanager
def new_folder(final: Path, **facts: Any) -> Iterator[Path]:
    """Give a temporary sibling to fill; on leaving, seal it with a manifest and rename it to `final`.

    After a crash there is either no `final` or a whole one. An existing `final` is replaced.
    `facts` go into the manifest beside the list of files.
    """
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex[:8]}")
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
    """Fsync every file below a folder and write its manifest last; return the manifest.

    Files that only their owner can read, as safetensors and tempfile write them, become as readable as the folder.
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
    """Remove a folder so that a crash half-way never leaves a part under its own name."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    trash = folder.with_name(f".{folder.name}.trash-{uuid.uuid4().hex[:8]}")
    folder.rename(trash)
    return trash


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders and files that a killed writer left in `folder` or below it."""
    for pattern in (f".*.tmp-{_RANDOM}", f".*.trash-{_RANDOM}"):
        for path in list(folder.rglob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:  # or it went with the folder it was in
                path.unlink(missing_ok=True)


def check_folder(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest after comparing every file with it.

    Raises:
        DamagedFile: the manifest is missing or unreadable, or a file is missing, altered or added.
    """
    if not (folder / MANIFEST).exists():
        raise DamagedFile(f"has no {MANIFEST}", where=str(folder), hint="it was never finished, or the file is gone")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedFile("lists no files", where=str(folder / MANIFEST))
    check_files(folder, manifest["files"])
    return manifest


def check_files(folder: Path, expected: dict[str, dict[str, Any]]) -> None:
    """Raise DamagedFile unless the files below `folder` are exactly those of `expected`."""
    found = list_files(folder)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise DamagedFile("is missing", where=str(folder / name))
        if name not in expected:
            raise DamagedFile("does not belong here", where=str(folder / name))
        if found[name] != expected[name]:
            raise DamagedFile(
                f"is damaged or was altered: sha256 {found[name]['sha256'][:12]}, expected "
                f"{expected[name]['sha256'][:12]}",
                where=str(folder / name),
            )


@contextlib.contextmanager
def translate_enospc(path: Path) -> Iterator[None]:
    """Translate out-of-space errors of the system or a library (ENOSPC, EDQUOT) into DoesNotFit with the free space."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise errors of no common kind
        full = out_of_space_error(errno_of(error), path)
        if full is None:
            raise
        raise full from error


def out_of_space_error(number: int | None, path: Path) -> DoesNotFit | None:
    """Return the error for an errno that means that nothing more fits where `path` is; None for others."""
    if number not in _OUT_OF_SPACE:
        return None
    place = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    return DoesNotFit(
        f"{_OUT_OF_SPACE[number]} ({shutil.disk_usage(place).free / 2**30:.1f} GiB free); "
        "what was finished before is whole",
        where=str(path),
        hint="free some space and run the same command again",
    )


def errno_of(error: Exception) -> int | None:
    """Return an exception's errno, which libraries written in Rust give in their message; None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    told = _RUST_ERROR.search(str(error))
    return int(told.group(1)) if told else None


@contextlib.contextmanager
def exclusive_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases even if the process is killed.

    Args:
        wait: wait until another process releases it.

    Raises:
        Interrupted: another process holds it and `wait` is false.
    """
    with contextlib.ExitStack() as held:
        with translate_enospc(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: on a full disk a buffer would fail once more when the file is closed.
            file = held.enter_context(path.open("ab+", buffering=0))
            if not _locked(file, wait=wait):
                raise Interrupted(
                    f"another process ({_holder(file)}) is working here",
                    where=str(path.parent),
                    hint="wait for it, or give another --out",
                )
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}".encode())
        yield


def lock_holder(path: Path) -> str | None:
    """Return the process that holds a lock, as `pid 123 on its-machine`, or None."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
    return None


def _locked(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file for this process. Retry for a while, because `lock_holder` holds the lock for a moment too."""
    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    for pause in (0.1, 0.4, 1.0, 0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip() or "unknown"
