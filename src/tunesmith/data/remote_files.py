"""Fetch the remote files of a source into the cache, once per version, so that they are read like local ones.

An address is a file, a pattern, or a folder of shards; on the web, a file only.

`http://` and `https://` need no package. All other protocols (`s3://`, `gs://`, ...) are those of fsspec, whose back
ends are extras. If a place cannot be reached, the version that was fetched last is used.
"""

import http.client
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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


Choose = Callable[[Sequence[str], str], list[str]]
"""Returns which files of a folder are read, from their paths in the folder and the folder's label."""


class _IsFolder(Exception):
    """An address is a folder and not a file."""


class _Unreachable(Exception):
    """The place of a file does not answer, or breaks off."""


def is_remote(name: str) -> bool:
    """Return whether a name in a recipe is an address."""
    return _REMOTE.match(name) is not None


def remote_label(address: str) -> str:
    """Return an address without its user, password and query, which may hold secrets."""
    scheme, place, path = _split(address)
    return f"{scheme}://{place.rpartition('@')[2]}{path}"


def _split(address: str) -> tuple[str, str, str]:
    """Return the scheme, the place and the path. In object stores, `?` and `#` are characters of a path."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() in _EXTRAS:
        place, slash, path = rest.partition("/")
        return scheme, place, slash + path
    parts = urlsplit(address)
    return parts.scheme, parts.netloc, parts.path


def fetch(address: str, choose: Choose) -> list[tuple[Path, str]]:
    """Return the path in the cache and the label of a remote file, or of each file of a pattern or a folder.

    Raises:
        DataError: there is no such file, it may not be read, or its place cannot be reached and no copy is cached.
        RecipeError: the protocol is unknown, or its package is not installed.
    """
    is_pattern = not _is_web(address) and re.search(r"[*?\[]", address)
    try:
        if not is_pattern and not _listing(address).exists():
            return [(_fetch_file(address), remote_label(address))]
    except _IsFolder:
        if _is_web(address):
            label = remote_label(address)
            raise DataError(
                "is a folder, not a file",
                where=label,
                hint="name its files; a web server does not list them",
                code="wrong-path",
            ) from None
    addresses = _matches(address) if is_pattern else _folder_files(address, choose)
    return [(_fetch_file(each), remote_label(each)) for each in addresses]


def _is_web(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _fetch_file(address: str) -> Path:
    place = _cache_folder(address)
    latest, label = place / "latest.json", remote_label(address)
    name = _split(address)[2].rpartition("/")[2]
    if not name:
        raise _IsFolder
    name = unquote(name) if _is_web(address) else name
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
    found = _list_files(pattern, lambda system, path: map(system.unstrip_protocol, system.glob(path)))
    if not found:
        raise DataError("no file matches the pattern", where=remote_label(pattern), code="not-found")
    return found


def _folder_files(folder: str, choose: Choose) -> list[str]:
    """Return the addresses of the files of a folder that are read, in order; the last known ones without connection."""
    root = folder.rstrip("/") + "/"

    def find(system: Any, path: str) -> Iterator[str]:
        return (root + found.removeprefix(path.rstrip("/") + "/") for found in system.find(path))

    names = [address.removeprefix(root) for address in _list_files(folder, find)]
    return [root + name for name in choose(names, remote_label(folder))]


def _list_files(address: str, find: Callable[[Any, str], Iterable[str]]) -> list[str]:
    """Return the addresses that `find` returns, in order, and record them; the recorded ones without connection."""
    listing = _listing(address)
    try:
        with _file_system(address) as (system, path):
            found = sorted(find(system, path))
    except _Unreachable as error:
        return list(_cached(listing, remote_label(address), error)["addresses"])
    if found:
        listing.parent.mkdir(parents=True, exist_ok=True)
        write_json(listing, {"addresses": found})
    else:
        listing.unlink(missing_ok=True)
    return found


def _listing(address: str) -> Path:
    """Return the record of the files of a pattern or a folder."""
    return _cache_folder(address) / "matches.json"


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
    if _is_web(address):
        with _open_http(address) as opened:
            yield opened
        return
    with _file_system(address) as (system, path):
        info = system.info(path)
        if info.get("type") == "directory":
            raise _IsFolder
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
    except (TunesmithError, _IsFolder):
        raise
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=label, code="not-found") from error
    except PermissionError as error:
        hint = "check the credentials of this machine"
        raise DataError(f"may not be read ({error})", where=label, hint=hint, code="unreadable") from error
    except Exception as error:  # the back ends of fsspec have no common base
        raise _Unreachable(str(error) or type(error).__name__) from error


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
