"""The outermost layer of the server: errors become responses, and every request is counted and logged.

Neither the log nor the metrics have anything of a request's body, query or headers.
"""

import time
import traceback
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.core.errors import TunesmithError
from tunesmith.core.progress import log
from tunesmith.report.wording import visible
from tunesmith.serve.errors import ApiError, from_tunesmith, send_error
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.respond import Gone

_CLIENT_GONE = 499  # as nginx logs it; never sent
_MAX_PATH = 200


@dataclass(slots=True)
class Notes:
    """Facts about a request that inner layers learn: its route, and the version of the model that answers it."""

    route: str = "other"
    model: str = ""
    began: float = field(default_factory=time.perf_counter)


class Access:
    """An ASGI middleware that turns exceptions into responses, and counts and logs requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, logs: bool = True) -> None:
        self._app, self._metrics, self._logs = app, metrics, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes, status = Notes(), 0
        scope["notes"] = notes

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, send_noting)
        except (Gone, ClientDisconnect):
            self._metrics.disconnects.inc()
            status = _CLIENT_GONE
        except Exception as error:
            if status:  # the response has begun, so closing the connection is all that is left
                log(f"a response was broken off: {_location(error)}")
                raise
            await send_error(_api_error(error), send_noting)
        finally:
            self._metrics.running.dec()
            seconds = time.perf_counter() - notes.began
            self._metrics.requests.labels(notes.route, str(status)).inc()
            self._metrics.seconds.labels(notes.route).observe(seconds)
            if self._logs:
                _log_request(scope, status, seconds, notes.model)


def _log_request(scope: Scope, status: int, seconds: float, model: str) -> None:
    path = visible(scope["path"])[:_MAX_PATH].replace("\n", " ")
    client = scope["client"][0] if scope.get("client") else ""
    log(" ".join(filter(None, (client, scope["method"], path, str(status), f"{seconds:.3f} s", model))))


def _api_error(error: Exception) -> ApiError:
    """Return the response to an exception; one that is not ours is a bug, whose place is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        message = {404: "there is no such path", 405: "this path does not take this method"}.get(error.status_code)
        return ApiError(error.status_code, message or error.detail, headers=dict(error.headers or {}))
    if isinstance(error, TunesmithError):
        log(f"a request failed: {error.code}: {error.message}")
        return from_tunesmith(error)
    log(f"a request failed: {_location(error)}")
    return ApiError(500, "unexpected error; the server's log has its place", reason="unexpected")


def _location(error: BaseException) -> str:
    """Return the type and the places of an exception. Its message is left out, because it may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )
    return f"{type(error).__name__} at {places}"
