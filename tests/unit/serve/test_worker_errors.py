"""Errors in a pass of the worker, among them a lack of memory, fail only the requests that cause them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.workers import NAMES, ask

from tunesmith.core.errors import DoesNotFit, NonFinite
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.slot_cache import SlotCache
from tunesmith.serve.work import DeadlineExceeded
from tunesmith.serve.worker import Worker


def fail(worker: Worker, is_hit: Callable[[torch.Tensor], bool], error: Exception) -> Any:
    """Let each forward pass raise an error if its ids are hit; return the handle that ends it."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if is_hit(kwargs["input_ids"]):
            raise error

    return worker._model.register_forward_pre_hook(hook, with_kwargs=True)


def too_many_rows(passes: list[int], ids: torch.Tensor) -> bool:
    return len(ids) > 2


def sometimes(passes: list[int], ids: torch.Tensor) -> bool:
    """Hit two steps in which answers are half complete."""
    passes.append(len(ids))
    return len(passes) in (9, 16)


@pytest.mark.parametrize("is_hit", [too_many_rows, sometimes])
def test_out_of_memory_halves_the_batch_and_loses_nothing(own: Any, alone: Any, is_hit: Any) -> None:
    worker = own("one", "two", max_slots=8)
    sampling = [GREEDY if i % 2 else Sampling(1.0, seed=i) for i in range(12)]
    passes: list[int] = []
    with fail(worker, lambda ids: is_hit(passes, ids), torch.OutOfMemoryError()):
        answers = [ask(worker, NAMES[1 + i % 2], [5 + i, 6], 20, sampling=sampling[i]) for i in range(12)]
        for i, collected in enumerate(answers):
            assert collected.answer() == alone(NAMES[1 + i % 2], [5 + i, 6], 20, sampling[i]), i
        assert worker.stats.retries >= 2
    assert ask(worker, "one", [5, 6]).answer() == alone("one", [5, 6])
    assert worker.stats.slots == 8, "as many as before once nothing waits"
    assert worker.stats.failed == 0


def test_without_memory_for_known_beginnings_requests_are_answered_and_cancelled(
    own: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError

    worker = own("one")
    monkeypatch.setattr(SlotCache, "read_columns", fails)
    assert isinstance(ask(worker, "one", [5, 6], 400, timeout_s=0.05).error(), DeadlineExceeded)
    ask(worker, "one", [5, 6], 400)
    worker.cancel(1)
    assert ask(worker, "one", [5, 6]).answer() == alone("one", [5, 6])
    assert worker.stats.retries == 0


def test_a_request_that_never_fits_fails_alone(own: Any, alone: Any) -> None:
    worker = own("one")
    with fail(worker, lambda ids: bool((ids == 99).any()), torch.OutOfMemoryError()):
        answers = [ask(worker, "one", [99 if i == 3 else 5 + i, 6], 20) for i in range(9)]
        error = answers[3].error()
        assert isinstance(error, DoesNotFit)
        for i, collected in enumerate(answers):
            if i != 3:
                assert collected.answer() == alone("one", [5 + i, 6], 20)


def test_a_request_that_makes_its_pass_fail_fails_alone(own: Any, alone: Any) -> None:
    worker = own("one", "two")
    with fail(worker, lambda ids: bool((ids == 99).any()), ValueError("broken")):
        answers = [ask(worker, NAMES[1 + i % 2], [99 if i == 3 else 5 + i, 6], 20) for i in range(9)]
        assert "broken" in str(answers[3].error())
        for i, collected in enumerate(answers):
            if i != 3:
                assert collected.answer() == alone(NAMES[1 + i % 2], [5 + i, 6], 20)
    assert worker.is_alive


def test_logits_that_are_nan_fail_their_request_only(own: Any, alone: Any) -> None:
    worker = own("one")

    def poison(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output.logits[(kwargs["input_ids"] == 99).any(-1)] = torch.nan
        return output

    with worker._model.register_forward_hook(poison, with_kwargs=True):
        prompts = [[6, 99] if i % 3 == 0 else [6, 5 + i] for i in range(6)]
        answers = [ask(worker, "one", prompt, sampling=Sampling(1.0, seed=1) if i > 2 else GREEDY)
                   for i, prompt in enumerate(prompts)]  # fmt: skip
        for i, collected in enumerate(answers):
            if i % 3 == 0:
                assert isinstance(collected.error(), NonFinite)
            else:
                assert collected.answer() == alone("one", prompts[i], 8, Sampling(1.0, seed=1) if i > 2 else GREEDY)


def test_memory_bounds_the_slots_and_the_length_of_a_request(own: Any) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, fp32
    gib = 4 * 512 * token_bytes / 2**30
    capacity = own("base", cache_gib=gib, max_slots=16).capacity
    assert (capacity.slots, capacity.slot_tokens) == (4, 384), "a quarter is for beginnings of prompts"
    assert capacity.cache_bytes + capacity.prefix_bytes == 4 * 512 * token_bytes
    long = own("base", cache_gib=gib, max_tokens=512, max_slots=16).capacity
    assert (long.slots, long.slot_tokens) == (3, 512)
    with raises(DoesNotFit, "not-enough-memory"):
        own("base", cache_gib=gib / 4, max_tokens=512)
