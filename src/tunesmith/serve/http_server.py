"""Run the application on a socket with uvicorn: slow clients are dropped, and SIGTERM lets requests finish."""

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.core.errors import RecipeError

_HEADER_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 30
_MAX_HEADER_BYTES = 2**16
_BACKLOG = 512
# uvicorn answers further connections with 503.
_MAX_CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port; 0 chooses a free one.

    Raises:
        RecipeError: another program uses the port, or this machine has no such address.
    """
    where = f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        hint = "use 127.0.0.1 for this machine only, or an address of this machine"
        raise RecipeError(f"unknown host: {error.strerror}", where=where, code="wrong-host", hint=hint) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Another server may have been given the same port with SO_REUSEADDR, which only `listen` notices.
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            hint = "choose another one with --port; 0 takes any that is free"
            raise RecipeError("another program uses this port", where=where, code="port-in-use", hint=hint) from error
        hint = "ports below 1024 need privileges" if error.errno == errno.EACCES else "use another --host or --port"
        message = f"cannot listen: {error.strerror}"
        raise RecipeError(message, where=where, code="wrong-host", hint=hint) from error
    return bound


class _TimedProtocol(H11Protocol):
    """uvicorn's protocol, with a limit on the time in which the head of a request must arrive."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the time when a head is awaited, and end it when the head is there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._close_if_waiting)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_waiting(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class HttpServer(uvicorn.Server):
    """A server that SIGTERM and Ctrl-C end: it stops listening, finishes its requests, and returns.

    Args:
        on_stop: called when the server begins to stop.
        drain_seconds: the time for requests to finish; then they are broken off.
    """

    def __init__(self, app: ASGIApp, *, on_stop: Callable[[], None], drain_seconds: int) -> None:
        config = uvicorn.Config(
            app, http=_TimedProtocol, ws="none", lifespan="off", log_config=None, log_level="error",
            access_log=False, server_header=False, date_header=True, proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=drain_seconds,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES, limit_concurrency=_MAX_CONNECTIONS,
        )  # fmt: skip
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._on_stop()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. Unlike uvicorn, do not raise them again afterwards: stopping is a success."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def serve_until_stopped(self, bound: socket.socket, *, background: Callable[[], Awaitable[Any]]) -> None:
        """Serve on a socket until a signal.

        Args:
            background: a coroutine that runs meanwhile, and is cancelled at the end.
        """

        async def run() -> None:
            task = asyncio.ensure_future(background())
            try:
                await self.serve([bound])
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())
