"""The answers to one HTTP request: they are submitted together, and cancelled together if the request ends early."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType

from tunesmith.core.errors import TunesmithError
from tunesmith.inference.request import Token
from tunesmith.serve.errors import from_tunesmith
from tunesmith.serve.plan import Plan
from tunesmith.serve.work import Done, Event, Failed


class Generation:
    """Answers that a worker generates side by side, as an asynchronous context.

    Leaving the context cancels the answers that are not complete, so a client that disconnects, an error in one of
    several answers and a deadline all free the slots before the next token.
    """

    def __init__(self, plan: Plan) -> None:
        self._worker, self._works, self._on_first_token = plan.model.worker, plan.works, plan.on_first_token
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._pending: dict[int, int] = {}  # {place of the answer: its id in the worker}

    async def __aenter__(self) -> "Generation":
        """Submit all answers; raise ApiError if one is refused."""
        self._loop = asyncio.get_running_loop()
        try:
            for place, work in enumerate(self._works):
                self._pending[place] = self._worker.submit(work, partial(self._receive, place))
        except TunesmithError as error:
            self._cancel()
            raise from_tunesmith(error, "prompt") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for request in self._pending.values():
            self._worker.cancel(request)
        self._pending.clear()

    def _receive(self, place: int, event: Event) -> None:
        """Pass an event on from the worker's thread. Raises RuntimeError if the server's loop has ended."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (place of the answer, event) until all answers are complete; raise ApiError if one fails."""
        has_token = False
        while self._pending:
            place, event = await self._events.get()
            if not has_token and isinstance(event, Token | Done):
                has_token = True
                self._on_first_token()
            if isinstance(event, Done | Failed):
                self._pending.pop(place, None)
            if isinstance(event, Failed):
                raise from_tunesmith(event.error, "prompt") from None
            yield place, event
