"""Send a response: JSON, or a stream of server-sent events. A client that disconnects ends the work for it.

Starlette does not cancel the handler of a client that has gone, so the connection is watched here.
Format of the events: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from tunesmith.core.progress import log
from tunesmith.serve.errors import ApiError, send_head, send_json

_DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


class Gone(Exception):
    """The client has disconnected."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Await some work; cancel it and raise Gone if the client disconnects first. The body must have been read."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class JsonAnswer:
    """A JSON response that is computed while the client is connected.

    Args:
        headers: headers of the response.
    """

    def __init__(self, work: Awaitable[Mapping[str, Any]], headers: Mapping[str, str]) -> None:
        self._work, self._headers = work, dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the result, or the error."""
        value = await unless_gone(receive, self._work)
        await send_json(200, value, send, headers=self._headers)


class EventStream:
    """A stream of JSON chunks as server-sent events. It ends with `[DONE]`, also after an error.

    The status is sent with the first chunk, so an error before it has its proper status.

    Args:
        seconds: the longest time that the whole stream may take, so that a client that stops reading is dropped.
    """

    def __init__(self, chunks: AsyncGenerator[dict[str, Any]], headers: Mapping[str, str], *, seconds: float) -> None:
        self._chunks, self._headers, self._seconds = chunks, headers, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all chunks."""
        async with aclosing(self._chunks):  # cancels the answers if the client has gone
            await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        first = await anext(self._chunks)
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", **self._headers}
        await send_head(200, headers, send)
        async with asyncio.timeout(self._seconds):
            await _send_event(first, send)
            try:
                async for chunk in self._chunks:
                    await _send_event(chunk, send)
            except ApiError as error:
                await _send_event(error.body, send)
            except Exception as error:
                log(f"a stream failed: {type(error).__name__}: {error}")
                await _send_event(ApiError(500, "unexpected error", reason="unexpected").body, send)
            await send({"type": "http.response.body", "body": _DONE})


async def _send_event(value: Mapping[str, Any], send: Send) -> None:
    body = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
