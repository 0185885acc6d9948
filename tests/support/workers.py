"""Requests to a worker of the server, with their events."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.request import Limits, Token
from tunesmith.model.load import ComputeConfig
from tunesmith.serve.work import Done, Event, Failed, Work
from tunesmith.serve.worker import Worker

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
# Adapters whose answers differ, with the settings of their tuning.
ADAPTERS = {"one": {"rank": 4}, "two": {"rank": 2, "rslora": True}, "dora": {"rank": 4, "dora": True}}
NAMES = ("base", *ADAPTERS)
Folders = Mapping[str, ModelFolder]


class Collected:
    """The events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self._ended.set()

    def last(self) -> Event:
        assert self._ended.wait(60), self.events
        return self.events[-1]

    def answer(self) -> tuple[int, ...]:
        """Return the ids of the answer, which are those of its events."""
        last = self.last()
        assert isinstance(last, Done), last
        assert last.answer.ids == tuple(token.id for token in self.tokens)
        assert sum(isinstance(event, Done) for event in self.events) == 1
        return last.answer.ids

    def error(self) -> Exception:
        last = self.last()
        assert isinstance(last, Failed), last
        return last.error

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]


def ask(worker: Worker, model: str, prompt: Sequence[int], limit: int = 8, **settings: Any) -> Collected:
    """Submit a request with a limit of new tokens; return its events."""
    collected = Collected()
    worker.submit(Work(model, tuple(prompt), Limits(limit), **settings), collected)
    return collected
