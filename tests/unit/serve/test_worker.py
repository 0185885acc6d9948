"""The worker answers each request as if it were alone, whatever happens to the others."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import Opened

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Limits
from tunesmith.model.load import ComputeConfig
from tunesmith.serve.work import DeadlineExceeded, Done, Event, Failed, QueueFull, Stopping, Token, Work
from tunesmith.serve.worker import Worker

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)


class Collected:
    """The events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self._ended.set()

    def wait(self) -> Event:
        assert self._ended.wait(60), self.events
        return self.events[-1]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(event.id for event in self.events if isinstance(event, Token))


def ask(worker: Worker, prompt: Sequence[int], limit: int = 8, **settings: Any) -> Collected:
    collected = Collected()
    worker.submit(Work("tiny", tuple(prompt), Limits(limit), **settings), collected)
    return collected


@pytest.fixture
def worker(folder_of: Callable[[str], Path]) -> Iterator[Worker]:
    made = Worker("tiny", ModelFolder("tiny", folder_of("llama")), FP32, max_waiting=4)
    yield made
    made.close()
    assert not made.is_alive


def alone(model: Any, prompt: Sequence[int], limit: int = 8) -> tuple[int, ...]:
    [answer] = generate(model, [prompt], stop_ids=(), max_new_tokens=limit)
    return answer.ids


def test_requests_of_several_threads_are_answered_as_if_alone(worker: Worker, opened: Opened) -> None:
    prompts = [[5 + i] * (2 + i % 5) for i in range(12)]
    answers = [ask(worker, prompt) for prompt in prompts]
    model = opened("llama")
    for prompt, collected in zip(prompts, answers, strict=True):
        last = collected.wait()
        assert isinstance(last, Done)
        assert last.answer.ids == collected.ids == alone(model, prompt)


def test_a_full_queue_refuses_and_answers_the_others(worker: Worker) -> None:
    accepted = [ask(worker, [5, 6], 200) for _ in range(worker.slots + 4)]
    with raises(QueueFull, "queue-full"):
        ask(worker, [7])
    assert all(isinstance(collected.wait(), Done) for collected in accepted)
    assert isinstance(ask(worker, [7]).wait(), Done)


def test_cancelled_requests_send_no_more_events(worker: Worker) -> None:
    third = threading.Event()
    seen: list[Event] = []

    def collect(event: Event) -> None:
        seen.append(event)
        if len(seen) == 3:
            worker.cancel(index)
            third.set()

    index = worker.submit(Work("tiny", (5, 6), Limits(400)), collect)
    assert third.wait(60)
    assert isinstance(ask(worker, [7]).wait(), Done)
    assert len(seen) == 3
    assert all(isinstance(event, Token) for event in seen)


def test_a_deadline_fails_a_request(worker: Worker) -> None:
    last = ask(worker, [5], 400, timeout_s=0.02).wait()
    assert isinstance(last, Failed)
    assert isinstance(last.error, DeadlineExceeded)


def test_wrong_requests_are_refused_when_they_are_submitted(worker: Worker) -> None:
    with raises(RecipeError, "no-such-model"):
        worker.submit(Work("other", (5,), Limits(4)), Collected())
    with raises(RecipeError, "prompt-too-long", 513, 512):
        ask(worker, [5] * 505)
    with raises(RecipeError, "empty-prompt"):
        ask(worker, [])


def test_draining_answers_what_was_accepted(folder_of: Callable[[str], Path]) -> None:
    made = Worker("tiny", ModelFolder("tiny", folder_of("llama")), FP32)
    answers = [ask(made, [5, i + 3]) for i in range(20)]
    assert made.drain(60)
    assert all(isinstance(collected.events[-1], Done) for collected in answers)
    with raises(Stopping, "stopping"):
        ask(made, [7])
