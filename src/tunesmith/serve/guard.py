"""Refuse requests without the API key or for another host, before any route sees them.

A route added later is guarded too: only the paths in OPEN_PATHS are open.
"""

import hashlib
import hmac
import os
from collections.abc import Collection
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.core.errors import RecipeError
from tunesmith.core.json_server import is_loopback
from tunesmith.core.progress import log
from tunesmith.serve.errors import ApiError, send_error

OPEN_PATHS = frozenset({"/healthz"})
KEY_VARIABLE = "TUNESMITH_API_KEY"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MIN_KEY_BYTES = 8


class ApiKey:
    """The key that clients must send. Memory holds only its digest; a key file is read again when it changes.

    Args:
        key: the key; None if it is in a file.
        file: a file whose first line is the key.

    Raises:
        RecipeError: the key is empty or too short to be a secret, or the file cannot be read.
    """

    def __init__(self, key: str | None = None, *, file: Path | None = None) -> None:
        self._file, self._stamp = file, _stamp(file)
        self._digest = _digest(_read_key(file) if file else (key or "").encode(), str(file or KEY_VARIABLE))

    def accepts(self, authorization: bytes) -> bool:
        """Return whether the value of an Authorization header is `Bearer KEY`."""
        scheme, _, sent = authorization.partition(b" ")
        self._reload()
        is_right = hmac.compare_digest(hashlib.sha256(sent.strip()).digest(), self._digest)
        return is_right and scheme.lower() == b"bearer"

    def _reload(self) -> None:
        """Read the key file again if it was changed. A file that became unusable leaves the old key in place."""
        stamp = _stamp(self._file)
        if self._file is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digest = _digest(_read_key(self._file), str(self._file))
            log("the API key was read again")
        except RecipeError as error:
            log(f"the API key is unchanged: {error}")


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None


def _read_key(file: Path) -> bytes:
    try:
        return file.read_bytes().split(b"\n")[0].strip()
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(file), code="no-api-key") from error


def _digest(key: bytes, where: str) -> bytes:
    if len(key) < _MIN_KEY_BYTES:
        message = f"the API key has {len(key)} bytes; it needs {_MIN_KEY_BYTES} or more"
        hint = "make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise RecipeError(message, where=where, code="no-api-key", hint=hint)
    return hashlib.sha256(key).digest()


def read_key(host: str, file: Path | None = None) -> ApiKey | None:
    """Return the API key from a file or else the environment; None if there is none.

    Raises:
        RecipeError: there is no key, and other machines could reach a server at this address.
    """
    if file is not None:
        return ApiKey(file=file)
    if (key := os.environ.get(KEY_VARIABLE)) is not None:
        return ApiKey(key)
    if not is_loopback(host):
        message = "other machines can reach this address, so the server needs an API key"
        hint = f"set {KEY_VARIABLE}, or use --host 127.0.0.1"
        raise RecipeError(message, where=f"--host {host}", code="no-api-key", hint=hint)
    return None


def allowed_hosts(host: str, further: Collection[str] = ()) -> frozenset[str] | None:
    """Return the names that a Host header may have; None allows any.

    A page of another site can make a browser send requests to this machine under a name that resolves to it, so a
    server on loopback answers only to loopback names. With any other address, the key is required anyway.
    """
    if not is_loopback(host) and not further:
        return None
    return _LOOPBACK_NAMES | {host.lower()} | {name.lower() for name in further}


class Guard:
    """An ASGI middleware that refuses requests without the key, or whose Host header is not allowed.

    Args:
        key: None lets every request with an allowed host through.
        hosts: the result of `allowed_hosts`.
    """

    def __init__(self, app: ASGIApp, *, key: ApiKey | None, hosts: frozenset[str] | None) -> None:
        self._app, self._key, self._hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401, 403 or 400."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket; nothing here speaks it
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await send_error(problem, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._hosts is not None:
            names = [_host_name(value) for name, value in headers if name == b"host"]
            if len(names) != 1 or names[0] not in self._hosts:
                message = "the Host header names another server; allow a name with --allowed-host"
                return ApiError(403, message, reason="wrong_host", close=True)
        if self._key is None or scope["path"] in OPEN_PATHS:
            return None
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) == 1 and self._key.accepts(values[0]):
            return None
        challenge = {"www-authenticate": "Bearer"}
        message = "send the API key of this server in the header `Authorization: Bearer KEY`"
        return ApiError(401, message, reason="invalid_api_key", headers=challenge, close=True)


def _host_name(value: bytes) -> str:
    """Return the host of a Host header without its port, in lower case."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text
