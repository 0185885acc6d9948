"""A thread that owns a model and answers requests side by side; other threads submit them and get events."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.progress import log
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.request import Request
from tunesmith.inference.session import Session
from tunesmith.inference.slot_check import slot_budget
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, max_positions
from tunesmith.serve.work import DeadlineExceeded, Done, Event, Failed, OnEvent, QueueFull, Stopping, Token, Work

_MAX_SLOTS = 16


@dataclass(slots=True)
class _Open:
    """A request that has no answer yet."""

    request: Request
    on_event: OnEvent
    deadline: float


class Worker:
    """The thread of one model. All methods can be called from any thread.

    Args:
        name: the model's name in `Work.model`.
        max_waiting: the number of requests that may wait besides those that are answered at the same time.

    Raises:
        RecipeError: the model cannot be opened, or cannot generate in slots.
    """

    def __init__(self, name: str, folder: ModelFolder, compute: ComputeConfig, *, max_waiting: int = 64) -> None:
        self._name = name
        self._model: Any = open_model(folder, compute).eval()
        budget = slot_budget(self._model, [range(3, 40)])
        if budget is None:
            raise RecipeError(f"`{name}` cannot generate in slots", code="not-servable")
        self.slot_tokens = max_positions(self._model)
        self.slots = budget.max_slots(self.slot_tokens, _MAX_SLOTS)
        self._max_open = self.slots + max_waiting
        self._session = Session(self._model, slots=self.slots, slot_tokens=self.slot_tokens)
        self._ids = count()
        self._lock = threading.Lock()
        self._accepted = 0  # requests that have no last event yet
        self._is_draining = self._is_closed = False
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._open: dict[int, _Open] = {}
        self._thread = threading.Thread(target=self._run, name=f"worker of {name}", daemon=True)
        self._thread.start()

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return (self._name,)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, work: Work, on_event: OnEvent) -> int:
        """Add a request; return its id.

        Args:
            on_event: called in the worker's thread with each event, the last of which is `Done` or `Failed`. If it
                raises, the request is cancelled.

        Raises:
            RecipeError: there is no such model, or the prompt is empty, too long or not in the vocabulary.
            QueueFull: too many requests are waiting.
            Stopping: the worker drains or is closed.
        """
        if work.model not in self.models:
            hint = f"use one of {', '.join(self.models)}"
            raise RecipeError(f"there is no model `{work.model}`", hint=hint, code="no-such-model")
        request = Request(next(self._ids), work.prompt, work.limits, work.sampling)
        self._session.check(request)
        deadline = time.monotonic() + work.timeout_s if work.timeout_s is not None else float("inf")
        with self._lock:
            if self._is_draining or self._is_closed or not self.is_alive:
                raise Stopping("the server is stopping")
            if self._accepted >= self._max_open:
                message = f"{self._accepted} requests are being answered or wait already"
                raise QueueFull(message, hint="try again later")
            self._accepted += 1
            self._mail.put(lambda: self._add(_Open(request, on_event, deadline)))
        return request.index

    def cancel(self, request: int) -> None:
        """Drop a request, which frees its slot before the next token; it gets no last event. Ignore unknown ids."""
        self._mail.put(lambda: self._drop(request))

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, wait until the others are answered, and close; return whether all were answered."""
        with self._lock:
            self._is_draining = True
        until = time.monotonic() + timeout_s
        while self._accepted and self.is_alive and time.monotonic() < until:
            time.sleep(0.01)
        is_complete = not self._accepted
        self.close()
        return is_complete

    def close(self) -> None:
        """Stop the thread; the remaining requests fail with `Stopping`."""
        with self._lock:
            self._is_closed = True
        self._mail.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed:
            self._read_mail()
            self._expire()
            if self._session.busy:
                self._step()
        for index in list(self._open):
            self._fail(index, Stopping("the server stopped before the answer was complete"))

    def _read_mail(self) -> None:
        """Carry out the calls of other threads; wait for one if there is nothing else to do."""
        try:
            while True:
                self._mail.get(block=not self._session.busy and not self._is_closed)()
                if self._is_closed:
                    return
        except Empty:
            pass

    def _add(self, opened: _Open) -> None:
        self._open[opened.request.index] = opened
        self._session.add(opened.request)

    def _drop(self, index: int) -> None:
        if index in self._open:
            self._session.cancel(index)
            self._forget(index)

    def _forget(self, index: int) -> OnEvent:
        opened = self._open.pop(index)
        with self._lock:
            self._accepted -= 1
        return opened.on_event

    def _expire(self) -> None:
        now = time.monotonic()
        for index in [index for index, opened in self._open.items() if opened.deadline <= now]:
            self._session.cancel(index)
            self._fail(index, DeadlineExceeded("the request was not answered in its time"))

    def _step(self) -> None:
        try:
            tokens = self._session.step()
        except Exception as error:  # the thread must go on
            log(f"a step of the server failed: {type(error).__name__}: {error}")
            for index in list(self._open):
                self._fail(index, error)
            self._session = Session(self._model, slots=self.slots, slot_tokens=self.slot_tokens)
            return
        for index, token in tokens.items():
            self._send(index, Token(token))
        for answer in self._session.finished():
            if answer.index in self._open:
                _call(self._forget(answer.index), Done(answer))

    def _send(self, index: int, event: Event) -> None:
        if index in self._open and not _call(self._open[index].on_event, event):
            self._drop(index)

    def _fail(self, index: int, error: Exception) -> None:
        ours = error if isinstance(error, TunesmithError) else TunesmithError(str(error), code="unexpected")
        _call(self._forget(index), Failed(ours))


def _call(on_event: OnEvent, event: Event) -> bool:
    """Pass an event to its receiver; return false if that failed."""
    try:
        on_event(event)
    except Exception as error:  # such as the closed loop of a server that ends
        log(f"an event could not be delivered: {type(error).__name__}: {error}")
        return False
    return True
