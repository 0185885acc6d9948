"""Requests of the worker that wait, are refused, cancelled or late, and those that are left when it stops."""

import threading
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.workers import NAMES, Collected, Folders, ask

from tunesmith.core.errors import RecipeError
from tunesmith.inference.request import Limits
from tunesmith.serve.work import DeadlineExceeded, Event, QueueFull, Stopping, Work


def test_a_full_queue_refuses_and_answers_the_others(own: Any) -> None:
    worker = own("base", max_waiting=2)
    accepted = [ask(worker, "base", [5, 6], 200) for _ in range(6)]
    with raises(QueueFull, "queue-full"):
        ask(worker, "base", [7])
    assert all(len(collected.answer()) == 200 for collected in accepted)
    assert len(ask(worker, "base", [7]).answer()) == 8


def test_cancelled_requests_free_their_slot_and_send_no_more_events(own: Any, alone: Any) -> None:
    worker = own("one", "two", max_slots=2)
    cancelled: list[Collected] = []

    def abort(i: int) -> None:
        collected, started = Collected(), threading.Event()

        def collect(event: Event) -> None:
            collected(event)
            if len(collected.events) == 3:
                started.wait(60)
                worker.cancel(index)

        index = worker.submit(Work(NAMES[1 + i % 2], (5, 6 + i), Limits(400)), collect)
        started.set()
        cancelled.append(collected)

    for i in range(50):
        abort(i)
    assert ask(worker, "one", [7, 8]).answer() == alone("one", [7, 8])
    assert [len(collected.events) for collected in cancelled] == [3] * 50
    stats = worker.stats
    assert (stats.cancelled, stats.answered, stats.running, stats.waiting) == (50, 1, 0, 0)


def test_a_receiver_that_fails_cancels_its_request(own: Any, alone: Any) -> None:
    worker = own("one")

    def fails(event: Event) -> None:
        raise RuntimeError("the loop is closed")

    worker.submit(Work("one", (5, 6), Limits(400)), fails)
    assert ask(worker, "one", [7]).answer() == alone("one", [7])
    assert worker.stats.cancelled == 1


def test_a_deadline_fails_running_and_waiting_requests(own: Any) -> None:
    worker = own("base", max_slots=1)
    requests = [ask(worker, "base", [5], 400, timeout_s=0.02) for _ in range(3)]
    assert all(isinstance(collected.error(), DeadlineExceeded) for collected in requests)
    assert worker.stats.failed == 3


def test_wrong_requests_are_refused_when_they_are_submitted(own: Any) -> None:
    worker = own("base")
    with raises(RecipeError, "no-such-model"):
        ask(worker, "other", [5])
    with raises(RecipeError, "prompt-too-long", 513, 512):
        ask(worker, "base", [5] * 505)
    with raises(RecipeError, "empty-prompt"):
        ask(worker, "base", [])
    with pytest.raises(RecipeError):
        ask(worker, "base", [320])
    assert worker.stats.waiting == 0


def test_draining_answers_accepted_requests_only(own: Any) -> None:
    worker = own("base")
    answers = [ask(worker, "base", [5, i + 3]) for i in range(20)]
    assert worker.drain(60)
    assert all(len(collected.answer()) == 8 for collected in answers)
    with raises(Stopping, "stopping"):
        ask(worker, "base", [7])


def test_closing_fails_the_remaining_requests(own: Any) -> None:
    worker = own("base")
    answers = [ask(worker, "base", [5, i + 3], 500) for i in range(20)]
    assert not worker.drain(0.01)
    assert all(isinstance(collected.error(), Stopping) for collected in answers)
    worker.close()


def test_a_closed_worker_refuses_calls_instead_of_never_answering(own: Any, folders: Folders) -> None:
    worker = own("base", "one")
    worker.close()
    with pytest.raises(Stopping):
        worker.add("two", folders["two"])
    with pytest.raises(Stopping):
        worker.remove("one")
