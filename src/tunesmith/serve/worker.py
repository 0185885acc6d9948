"""A thread that owns a base with its adapters and answers requests side by side.

Other threads submit requests and get events. Everything that touches the model happens in the worker's thread, between
two forward passes: a new request, a cancellation, an adapter that is added or removed.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count
from queue import Empty, SimpleQueue

from tunesmith.core.errors import DoesNotFit, NonFinite, TunesmithError
from tunesmith.core.progress import log
from tunesmith.estimate.hardware import PrecisionSetting
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.prefix_cache import PrefixCache
from tunesmith.inference.request import Answer, Request
from tunesmith.inference.session import Session
from tunesmith.model.load import without_adapter
from tunesmith.model.memory import free_memory, is_out_of_memory
from tunesmith.serve.capacity import choose_capacity
from tunesmith.serve.models import Models, ServedModel
from tunesmith.serve.work import (
    Capacity,
    DeadlineExceeded,
    Done,
    Event,
    Failed,
    OnEvent,
    PromptScored,
    QueueFull,
    Stats,
    Stopping,
    Work,
)

# Seconds after running out of memory until more requests are answered at the same time again.
_SECONDS_UNTIL_GROWTH = 60.0


@dataclass(slots=True)
class _Open:
    """A request that has no last event yet."""

    request: Request
    on_event: OnEvent
    deadline: float
    has_scores: bool = False


class Worker:
    """The thread of one base. All methods can be called from any thread.

    Args:
        models: the models by name: adapters of one base, the base itself, or a single full model.
        precision: the precision to compute in, as in a recipe.
        cache_gib: the memory for keys and values; by default a quarter of the free memory, at most 8 GiB.
        max_tokens: the maximum number of tokens of a prompt with its answer; by default the model's positions, or fewer
            if memory is short.
        max_slots: the maximum number of requests that are answered at the same time.
        max_waiting: the number of requests that may wait.

    Attributes:
        max_open: the number of requests that can be answered or wait.

    Raises:
        RecipeError: the models have different bases, or one cannot be opened.
        DoesNotFit: there is no memory for one request of `max_tokens`.
    """

    def __init__(
        self,
        models: Mapping[str, ModelFolder],
        *,
        precision: PrecisionSetting = "auto",
        cache_gib: float | None = None,
        max_tokens: int | None = None,
        max_slots: int = 16,
        max_waiting: int = 64,
    ) -> None:
        self._models = Models(models, precision)
        self._model = without_adapter(self._models.adapters.model)
        self.capacity: Capacity = choose_capacity(
            self._model, cache_gib=cache_gib, max_tokens=max_tokens, max_slots=max_slots
        )
        self._prefixes = PrefixCache(self.capacity.prefix_bytes)
        self._session = Session(
            self._model,
            slots=self._slots_of(self.capacity.slots),
            slot_tokens=self.capacity.slot_tokens,
            prefixes=self._prefixes,
            adapters=self._models.adapters,
            interleave=True,
        )
        self.max_open = self.capacity.slots + max_waiting
        self._stats = Stats(slots=self.capacity.slots)
        self._grow_at = float("inf")
        self._ids = count()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._accepted = 0  # requests that have no last event yet
        self._is_draining = self._is_closed = False
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._open: dict[int, _Open] = {}
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return self._models.names

    def model(self, name: str) -> ServedModel:
        """Return a model; raise RecipeError if there is none of this name."""
        return self._models.require(name)

    @property
    def precision(self) -> str:
        """The precision to compute in, such as `bf16`."""
        return self._models.adapters.compute.precision

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stats(self) -> Stats:
        """The state and the counts at this moment."""
        running = self._session.running
        prefixes = self._prefixes
        return replace(
            self._stats,
            running=running,
            waiting=max(0, self._accepted - running),
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_hit_tokens=prefixes.hit_tokens,
            prefix_bytes=prefixes.nbytes,
        )

    def submit(self, work: Work, on_event: OnEvent) -> int:
        """Add a request; return its id.

        Args:
            on_event: called in the worker's thread with each event, the last of which is `Done` or `Failed`. If it
                raises, the request is cancelled.

        Raises:
            RecipeError: there is no such model; the prompt is empty, too long or not in the vocabulary; or the model
                cannot do what is asked.
            QueueFull: too many requests are waiting.
            Stopping: the worker drains or is closed.
        """
        deadline = time.monotonic() + work.timeout_s if work.timeout_s is not None else float("inf")
        with self._lock:  # so that the model stays until the request is in the mail
            if self._is_draining or self._is_closed or not self.is_alive:
                raise Stopping("the server is stopping")
            request = Request(
                next(self._ids),
                work.prompt,
                work.limits,
                work.sampling,
                work.decoder_prefix_ids,
                adapter=self._models.require(work.model).adapter,
                adjustment=work.adjustment,
                top_scores=work.top_scores,
                score_prompt=work.score_prompt,
            )
            self._session.check(request)
            if self._accepted >= self.max_open:
                message = f"{self._accepted} requests are being answered or wait already"
                raise QueueFull(message, hint="try again later")
            self._accepted += 1
            self._mail.put(lambda: self._add(_Open(request, on_event, deadline)))
        return request.index

    def cancel(self, request: int) -> None:
        """Drop a request, which frees its slot before the next token; it gets no last event. Ignore unknown ids."""
        self._mail.put(lambda: self._drop(request))

    def add(self, name: str, folder: ModelFolder) -> "Future[None]":
        """Open another adapter of this base, and check it with a forward pass; requests can name it afterwards.

        Other requests wait meanwhile: about two seconds of processor time if the model has 135M parameters.

        The result raises RecipeError if the name is in use or the model cannot be added here: another base or
        quantization, or tokens that the opened model has no rows for. Such a model needs a worker of its own.
        """
        return self._call(lambda: self._models.add(name, folder))

    def remove(self, name: str) -> "Future[None]":
        """Take no new requests for a model. The result is set when its last request has ended and its memory is free.

        Raises:
            RecipeError: there is no model of this name.
            Stopping: the worker is closed.
        """
        removed: Future[None] = Future()
        with self._lock:
            self._require_running()
            model = self._models.withdraw(name)
            self._mail.put(lambda: self._models.remove(model, removed))
        return removed

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, wait until the others are answered, and close; return whether all were answered."""
        with self._ended:
            self._is_draining = True
            is_complete = self._ended.wait_for(lambda: not self._accepted or not self.is_alive, timeout_s)
        self.close()
        return is_complete

    def close(self) -> None:
        """Stop the thread; the remaining requests fail with `Stopping`."""
        with self._lock:
            self._is_closed = True
        self._mail.put(lambda: None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, action: Callable[[], None]) -> "Future[None]":
        """Do something in the worker's thread."""
        result: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except Exception as error:
                result.set_exception(error)
            else:
                result.set_result(None)

        with self._lock:
            self._require_running()
            self._mail.put(run)
        return result

    def _require_running(self) -> None:
        """Raise Stopping if nobody reads the mail any more, so that no caller waits for a result forever."""
        if self._is_closed:
            raise Stopping("the server is stopping")

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._grow()
                self._read_mail()
                self._expire()
                if self._session.busy:
                    self._step()
        finally:
            with self._lock:
                self._is_closed = True
            self._read_mail()
            for index in list(self._open):
                self._fail(index, Stopping("the server stopped before the answer was complete"))

    def _read_mail(self) -> None:
        """Carry out the calls of other threads; wait for one if there is nothing else to do."""
        try:
            while True:
                call = self._mail.get(block=not self._session.busy and not self._is_closed)
                try:
                    call()
                except Exception as error:  # the thread must survive
                    log(f"the server failed between two passes: {type(error).__name__}: {error}")
        except Empty:
            pass

    def _add(self, opened: _Open) -> None:
        request = opened.request
        self._open[request.index] = opened
        self._models.use(request.adapter)
        self._stats.prompt_tokens += len(request.prompt)
        self._session.add(request)

    def _drop(self, index: int) -> None:
        if index in self._open:
            self._session.cancel(index)
            self._stats.cancelled += 1
            self._forget(index)

    def _forget(self, index: int) -> OnEvent:
        opened = self._open.pop(index)
        if (freed := self._models.leave(opened.request.adapter)) is not None:
            self._prefixes.forget(freed)
        with self._ended:
            self._accepted -= 1
            self._ended.notify_all()
        return opened.on_event

    def _expire(self) -> None:
        now = time.monotonic()
        for index in [index for index, opened in self._open.items() if opened.deadline <= now]:
            self._session.cancel(index)
            self._fail(index, DeadlineExceeded("the request was not answered in its time"))

    def _step(self) -> None:
        problem: Exception | None = None
        try:
            tokens = self._session.step()
        except Exception as error:  # the thread must survive
            problem = error.with_traceback(None)  # its frames hold the tensors of the failed pass
        if problem is not None:
            self._retry(problem)
            return
        for index, token in tokens:
            self._stats.new_tokens += 1
            self._send(index, token)
        for answer in self._session.finished():
            if answer.index in self._open:
                self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        self._send_prompt_scores(answer.index)
        if answer.error is not None:
            self._fail(answer.index, NonFinite(answer.error))
        elif answer.index in self._open:
            self._stats.answered += 1
            _deliver(self._forget(answer.index), Done(answer))

    def _retry(self, error: Exception) -> None:
        """Repeat a failed pass with half as many requests; fail a request whose pass fails for it alone.

        So a request that makes its pass fail, or does not fit in memory, does not take others with it.
        """
        is_memory = is_out_of_memory(error)
        slots = self._stats.slots
        failed = self._session.recover(self._slots_of(max(1, slots // 2)))
        if is_memory:
            free_memory()
        log(f"a pass with {len(failed)} requests failed: {type(error).__name__}: {error}")
        if slots > 1:
            self._stats.slots, self._stats.retries = slots // 2, self._stats.retries + 1
            self._grow_at = time.monotonic() + _SECONDS_UNTIL_GROWTH
            return
        problem: Exception = error
        if is_memory:
            hint = "shorten the prompt, or lower the number of new tokens"
            problem = DoesNotFit("out of memory while answering one request", hint=hint, code="out-of-memory")
        for request in failed:
            self._session.cancel(request.index)
            self._fail(request.index, problem)
        if not is_memory:
            self._grow_at = time.monotonic()

    def _grow(self) -> None:
        """Answer as many requests at the same time as before an error, after a while or when there are none."""
        full = self.capacity.slots
        if self._stats.slots < full and (time.monotonic() >= self._grow_at or not self._session.busy):
            self._stats.slots, self._grow_at = full, float("inf")
            self._session.recover(self._slots_of(full))

    def _slots_of(self, slots: int) -> int | None:
        return None if self.capacity.one_at_a_time else slots

    def _send(self, index: int, event: Event) -> None:
        self._send_prompt_scores(index)
        if index in self._open and not _deliver(self._open[index].on_event, event):
            self._drop(index)

    def _send_prompt_scores(self, index: int) -> None:
        opened = self._open.get(index)
        if opened and not opened.has_scores and (scores := opened.request.prompt_scores) is not None:
            opened.has_scores = True
            self._send(index, PromptScored(tuple(scores)))

    def _fail(self, index: int, error: Exception) -> None:
        if index not in self._open:
            return
        self._stats.failed += 1
        known = error if isinstance(error, TunesmithError) else TunesmithError(f"{error}", code="unexpected")
        _deliver(self._forget(index), Failed(known))


def _deliver(on_event: OnEvent, event: Event) -> bool:
    """Pass an event to its receiver; return false if that failed."""
    try:
        on_event(event)
    except Exception as error:  # such as the closed loop of a server that ends
        log(f"an event could not be delivered: {type(error).__name__}: {error}")
        return False
    return True
