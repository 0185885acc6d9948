"""Fetch the remote files of a source into the cache, once per version, so that they are read like local ones.

`http://` and `https://` need no package. All other protocols (`s3://`, `gs://`, ...) are those of fsspec, whose back
ends are extras. If a place cannot be reached, the version that was fetched last is used.
"""

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tunesmith.core.errors import DataError, RecipeError, TunesmithError, install_hint
from tunesmith.core.files import MANIFEST, digest_of, new_folder, read_json, write_chunks, write_json
from tunesmith.core.progress import log
from tunesmith.core.user_folders import cache_root, check_writable

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_TIMEOUT_SECONDS = 20
_CHUNK_BYTES = 2**20
# What identifies the content of a file, as servers and back ends of fsspec call it.
_CHECKSUMS = ("etag", "versionid", "generation", "md5hash", "content-md5", "content_md5", "crc32c", "checksum")
_TIMES = ("last-modified", "last_modified", "lastmodified", "mtime", "modified", "updated", "created")

# Cached files without a version that this process has fetched, so that all parts of a command read the same content.
_fetched_unversioned: set[Path] = set()

Opened = tuple[dict[str, str], Iterator[bytes]]
"""The version of a file, empty if its server gives none, and its content."""


class _Unreachable(Exception):
    """The place of a file does not answer, or breaks off."""


def is_remote(name: str) -> bool:
    """Return whether a name in a recipe is an address."""
    return _REMOTE.match(name) is not None


def remote_label(address: str) -> str:
    """Return an address without its user, password and query, which may hold secrets."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fetch(address: str) -> list[tuple[Path, str]]:
    """Return the path in the cache and the label of a remote file, or of each file that a pattern matches.

    Raises:
        DataError: there is no such file, it may not be read, or its place cannot be reached and no copy is cached.
        RecipeError: the protocol is unknown, or its package is not installed.
    """
    is_pattern = not address.lower().startswith(("http://", "https://")) and re.search(r"[*?\[]", address)
    addresses = _matches(address) if is_pattern else [address]
    return [(_fetch_file(each), remote_label(each)) for each in addresses]


def _fetch_file(address: str) -> Path:
    place = _cache_folder(address)
    latest, label = place / "latest.json", remote_label(address)
    name = unquote(PurePosixPath(urlsplit(address).path).name)
    if not name:
        raise _folder_error(label)
    try:
        with _open(address) as (version, content):
            folder = place / (digest_of(version)[:16] if version else "unknown")
            is_current = bool(version) or folder in _fetched_unversioned
            if not is_current or not (folder / MANIFEST).exists():
                check_writable(folder)  # else its OSError would look like one of the connection
                log(f"fetching {label}")
                with new_folder(folder, address=label, version=version) as temporary:
                    write_chunks(temporary / name, content)
                if not version:
                    _fetched_unversioned.add(folder)
            if not latest.exists() or read_json(latest) != {"folder": folder.name}:
                write_json(latest, {"folder": folder.name})
            return folder / name
    except _Unreachable as error:
        return place / str(_cached(latest, label, error)["folder"]) / name


def _matches(pattern: str) -> list[str]:
    """Return the addresses that match a pattern, in order; the last known ones if the place cannot be reached."""
    listing = _cache_folder(pattern) / "matches.json"
    label = remote_label(pattern)
    try:
        with _file_system(pattern) as (system, path):
            found = sorted(system.unstrip_protocol(match) for match in system.glob(path))
    except _Unreachable as error:
        return list(_cached(listing, label, error)["addresses"])
    if not found:
        raise DataError("no file matches the pattern", where=label, code="not-found")
    listing.parent.mkdir(parents=True, exist_ok=True)
    write_json(listing, {"addresses": found})
    return found


def _cached(record: Path, label: str, error: _Unreachable) -> dict[str, Any]:
    """Return the record of what was fetched last; raise DataError if there is none."""
    if not record.exists():
        hint = "check the address, the connection and the credentials; no copy is in the cache"
        raise DataError(f"cannot be reached ({error})", where=label, hint=hint, code="source-unreachable") from error
    log(f"{label} cannot be reached ({error}); the version that was fetched last is used")
    return dict(read_json(record))


def _cache_folder(address: str) -> Path:
    return cache_root() / "sources" / digest_of(address)[:16]


@contextmanager
def _open(address: str) -> Iterator[Opened]:
    """Yield the version and the content of a remote file; the content is not read unless it is iterated."""
    if address.lower().startswith(("http://", "https://")):
        with _open_http(address) as opened:
            yield opened
        return
    with _file_system(address) as (system, path):
        info = system.info(path)
        if info.get("type") == "directory":
            raise _folder_error(remote_label(address))
        with system.open(path, "rb") as file:
            yield _version(info), _chunks(file, info.get("size"))


@contextmanager
def _open_http(address: str) -> Iterator[Opened]:
    label = remote_label(address)
    try:
        with urlopen(Request(address, headers={"User-Agent": "tunesmith"}), timeout=_TIMEOUT_SECONDS) as response:
            size = response.headers.get("Content-Length")
            info = {"size": size, **response.headers}
            yield _version(info), _chunks(response, None if size is None else int(size))
    except HTTPError as error:
        if error.code in (404, 410):
            raise DataError("there is no such file", where=label, code="not-found") from error
        if error.code in (401, 403):
            hint = "give an address that needs no login, such as a signed one"
            raise DataError(
                f"may not be read (HTTP {error.code})", where=label, hint=hint, code="unreadable"
            ) from error
        raise _Unreachable(f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Unreachable(str(getattr(error, "reason", error))) from error


@contextmanager
def _file_system(address: str) -> Iterator[tuple[Any, str]]:
    """Yield fsspec's file system of an address and the path in it, and translate its errors."""
    import fsspec

    label, protocol = remote_label(address), address.split("://")[0].lower()
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        hint = install_hint(_EXTRAS[protocol]) if protocol in _EXTRAS else str(error)
        raise RecipeError(f"`{protocol}://` needs a package", where=label, hint=hint, code="missing-package") from error
    except ValueError as error:
        hint = f"known are http, https, {', '.join(_EXTRAS)} and the other protocols of fsspec"
        raise RecipeError(f"unknown protocol `{protocol}`", where=label, hint=hint, code="wrong-value") from error
    try:
        system.invalidate_cache()
        yield system, path
    except TunesmithError:
        raise
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=label, code="not-found") from error
    except PermissionError as error:
        hint = "check the credentials of this machine"
        raise DataError(f"may not be read ({error})", where=label, hint=hint, code="unreadable") from error
    except Exception as error:  # the back ends of fsspec have no common base
        raise _Unreachable(str(error) or type(error).__name__) from error


def _folder_error(label: str) -> DataError:
    hint = f"name its files, or a pattern such as {label.rstrip('/')}/*.jsonl"
    if label.lower().startswith(("http://", "https://")):
        hint = "name its files; a web server does not list them"
    return DataError("is a folder, not a file", where=label, hint=hint, code="wrong-path")


def _version(info: dict[str, Any]) -> dict[str, str]:
    """Return what identifies a file's content: its checksums, or else its size and times; empty if there is none."""
    facts = {key.lower(): str(value) for key, value in info.items() if value not in (None, "")}
    checksums = {key: facts[key] for key in _CHECKSUMS if key in facts}
    times = {key: facts[key] for key in _TIMES if key in facts}
    return checksums or ({"size": facts.get("size", ""), **times} if times else {})


def _chunks(file: Any, size: int | None) -> Iterator[bytes]:
    """Yield the content of a file; raise _Unreachable if it ends before its size."""
    read = 0
    while chunk := file.read(_CHUNK_BYTES):
        read += len(chunk)
        yield chunk
    if size is not None and read != size:
        raise _Unreachable(f"the transfer broke off after {read:,} of {size:,} bytes")
