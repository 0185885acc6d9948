"""Read the JSON body of a request, with limits on its size, its depth and the time it takes."""

import asyncio
import json
import re
from typing import Any

from starlette.requests import Request

from tunesmith.serve.errors import ApiError, invalid, too_large

_MEDIA_TYPE = "application/json"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_json_object(request: Request, *, max_bytes: int, seconds: float) -> dict[str, Any]:
    """Return the JSON object in a body.

    A page of another site in a user's browser can send text to a server on the user's own machine, but no JSON unless
    the server allows it, so the content type must be JSON.

    Raises:
        ApiError: the body is not a JSON object in UTF-8, or is too large or too slow.
        ClientDisconnect: the client has gone.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _MEDIA_TYPE:
        message = f"the Content-Type must be {_MEDIA_TYPE}"
        raise ApiError(415, message, reason="unsupported_content_type", close=True)
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, max_bytes)
    except TimeoutError:
        message = f"the request's body took longer than {seconds:g} s"
        raise ApiError(408, message, reason="request_timeout", close=True) from None
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid(None, "the request's body must be a JSON object", "invalid_json")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    problem = too_large(f"the request's body is larger than {max_bytes:,} bytes")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise problem
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise problem
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Return the value of JSON in UTF-8. Unlike `json.loads`, refuse repeated keys, NaN and infinity.

    Raises:
        ApiError: the text is not JSON, or nested too deeply.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid(None, f"the request's body is not UTF-8 (byte {error.start})", "invalid_json") from None
    except RecursionError:
        raise invalid(None, "the request's body is nested too deeply", "invalid_json") from None
    except ValueError as error:  # also numbers with too many digits
        raise invalid(None, f"the request's body is not JSON: {error}", "invalid_json") from None
    if _SURROGATE.search(text):
        _require_unicode(value)
    return value


def _require_unicode(value: Any) -> None:
    """Raise ApiError if a text has half of a surrogate pair, which no tokenizer can encode."""
    parts = value.items() if isinstance(value, dict) else [(None, value)]
    for name, part in parts:
        try:
            json.dumps([name, part], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            param = name if name and name.isascii() else None
            raise invalid(param, "has half of a surrogate pair, which is not Unicode", "invalid_unicode") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise ApiError if a key is repeated, because one of its values would be ignored."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise invalid(repeated, "the key is repeated", "invalid_json")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
