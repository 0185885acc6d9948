"""Ask an HTTP server that speaks JSON: busy servers are asked again, and every failure is an error with a code."""

import copy
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError, TunesmithError

_SECONDS = 600.0  # for one answer
# Pauses between attempts, in seconds. The last one is followed by a last attempt.
_PAUSES = (1.0, 2.0, 4.0, 8.0)
_BUSY, _WRONG_KEY = (408, 409, 429), (401, 403)
_MESSAGE_CHARACTERS = 300


class RequestRefused(TunesmithError):
    """The server refused a request, such as a prompt beyond the model's context length.

    Attributes:
        status: the HTTP status, 3xx or 4xx.
    """

    code = "request-refused"

    def __init__(self, status: int, problem: str, *, where: str) -> None:
        super().__init__(f"HTTP {status}: {problem}", where=where)
        self.status = status


class JsonServer:
    """A server, by the URL below which its routes are.

    Args:
        key: sent as a bearer token, to this server only: redirects are not followed.
        before_retry: called before a request is repeated; raises if the server is known to be gone.
    """

    def __init__(self, url: str, *, key: str | None = None, before_retry: Callable[[], None] = interrupt.check) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._before_retry = before_retry
        proxies = [urllib.request.ProxyHandler({})] if _is_on_this_machine(self.url) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def below(self, path: str) -> "JsonServer":
        """Return the same server with another path for the start of its routes."""
        server = copy.copy(self)
        server.url = f"{self.url}{path}"
        return server

    def get(self, path: str, *, patient: bool = True) -> Any:
        """Return the JSON of a route; see `post`."""
        return self._ask(path, None, patient)

    def post(self, path: str, body: dict[str, Any], *, patient: bool = True) -> Any:
        """Return the response to a JSON body.

        Args:
            patient: ask again if the server is busy, fails or does not answer.

        Raises:
            RecipeError: the server cannot be reached (`server-unreachable`) or refuses the key (`wrong-key`).
            RequestRefused: it refuses this request.
            TunesmithError: it fails, or answers something other than JSON (`server-failed`).
        """
        return self._ask(path, json.dumps(body).encode(), patient)

    def _ask(self, path: str, body: bytes | None, patient: bool) -> Any:
        where = f"{self.url}{path}"
        for pause in (*(_PAUSES if patient else ()), None):
            interrupt.check()
            try:
                return self._open(where, body)
            except urllib.error.HTTPError as error:
                problem = error.read().decode(errors="replace")[:_MESSAGE_CHARACTERS]
                if error.code in _WRONG_KEY:
                    message, hint = f"refuses the key: HTTP {error.code}: {problem}", "set OPENAI_API_KEY"
                    raise RecipeError(message, where=where, hint=hint, code="wrong-key") from error
                if error.code < 500 and error.code not in _BUSY:
                    raise RequestRefused(error.code, problem, where=where) from error
                failure = TunesmithError(f"HTTP {error.code}: {problem}", where=where, code="server-failed")
            except ValueError as error:
                message, hint = f"does not answer JSON: {error}", "check the URL"
                failure = TunesmithError(message, where=where, hint=hint, code="server-failed")
            except (OSError, http.client.HTTPException) as error:
                if isinstance(getattr(error, "reason", error), TimeoutError):  # another attempt would take as long
                    message = f"did not answer in {_SECONDS:.0f} s"
                    raise TunesmithError(message, where=where, code="server-failed") from error
                message = f"cannot be reached: {getattr(error, 'reason', '') or error or type(error).__name__}"
                hint = "check the URL, and that the server runs"
                failure = RecipeError(message, where=where, hint=hint, code="server-unreachable")
            self._before_retry()
            if pause is None:
                raise failure
            time.sleep(pause)
        raise AssertionError

    def _open(self, url: str, body: bytes | None) -> Any:
        request = urllib.request.Request(url, body, self._headers)
        with self._opener.open(request, timeout=_SECONDS) as response:
            return json.load(response)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Report redirects as errors, because urllib would send the key to the other server too."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is that of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_on_this_machine(url: str) -> bool:
    """Return whether a URL is on this machine, which no proxy can reach; 0.0.0.0 is where a server listens for all."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return is_loopback(host) or host in ("0.0.0.0", "::")
