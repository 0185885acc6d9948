"""Errors of the HTTP server, in the shape of OpenAI's API: {"error": {message, type, param, code}}."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Send

from tunesmith.core.errors import TunesmithError

_BAD_REQUEST, _TOO_LARGE, _SERVER_ERROR, _UNAVAILABLE, _TIMEOUT = 400, 413, 500, 503, 504
# The status of errors that the model's thread or the prompt template raises, by their code.
_STATUS_BY_CODE = {
    "queue-full": 429, "deadline-exceeded": _TIMEOUT, "stopping": _UNAVAILABLE, "out-of-memory": _UNAVAILABLE,
    "non-finite": _SERVER_ERROR, "unexpected": _SERVER_ERROR,
}  # fmt: skip
_OPENAI_NAMES = {"prompt-too-long": "context_length_exceeded", "no-such-model": "model_not_found"}
_RETRY_SECONDS = "1"


class ApiError(Exception):
    """A refused or failed request.

    Args:
        status: the HTTP status.
        message: the problem, and what to do.
        param: the field of the request that is wrong, such as `messages[0].content`.
        reason: a stable code for programs; those of the command line are in `ERROR_CODES`.
        headers: further headers of the response.
        close: whether the connection is closed afterwards, because the request's body has not been read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        reason: str | None = None,
        headers: Mapping[str, str] = {},
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.reason = status, message, param, reason
        self.headers = {**headers, **({"connection": "close"} if close else {})}

    @property
    def body(self) -> dict[str, Any]:
        """The response."""
        error = {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.reason}
        return {"error": error}


def invalid(param: str | None, message: str, reason: str = "invalid_value") -> ApiError:
    """Return the error for a field of a request."""
    return ApiError(_BAD_REQUEST, f"`{param}`: {message}" if param else message, param=param, reason=reason)


def too_large(message: str) -> ApiError:
    """Return the error for a body that has not been read to its end."""
    return ApiError(_TOO_LARGE, message, reason="request_too_large", close=True)


def from_tunesmith(error: TunesmithError, param: str | None = None) -> ApiError:
    """Return the error for one of tunesmith's own; its place is left out, because it may be a path of this machine.

    Args:
        param: the field that caused it, for errors of a request.
    """
    status = _STATUS_BY_CODE.get(error.code, _BAD_REQUEST)
    text = f"{error.message}; {error.hint}" if error.hint and status < _SERVER_ERROR else error.message
    headers = {"retry-after": _RETRY_SECONDS} if status in (429, _UNAVAILABLE) else {}
    is_request = status == _BAD_REQUEST
    reason = _OPENAI_NAMES.get(error.code, error.code.replace("-", "_"))
    return ApiError(status, text, param=param if is_request else None, reason=reason, headers=headers)


def _type_of(status: int) -> str:
    names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    if status in names:
        return names[status]
    return "server_error" if status >= _SERVER_ERROR else "invalid_request_error"


async def send_error(error: ApiError, send: Send) -> None:
    """Send an error as the whole response."""
    await send_json(error.status, error.body, send, headers=error.headers)


async def send_json(status: int, value: Mapping[str, Any], send: Send, *, headers: Mapping[str, str] = {}) -> None:
    """Send JSON as the whole response."""
    body = json.dumps(value, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    await send_head(status, headers, send)
    await send({"type": "http.response.body", "body": body})


async def send_head(status: int, headers: Mapping[str, str], send: Send) -> None:
    """Send the status and the headers, which begin a response."""
    raw = [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
