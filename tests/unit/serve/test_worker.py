"""The worker answers each request as if it were alone, whatever happens to the others."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import Opened

from tunesmith.core.errors import DoesNotFit, NonFinite, RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.adjustment import Adjustment
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Limits, Token
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.slot_cache import SlotCache
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig
from tunesmith.serve.work import DeadlineExceeded, Done, Event, Failed, PromptScored, QueueFull, Stopping, Work
from tunesmith.serve.worker import Worker

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
NAMES = ("base", "one", "two", "dora")
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
    collected = Collected()
    worker.submit(Work(model, tuple(prompt), Limits(limit), **settings), collected)
    return collected


@pytest.fixture(scope="module")
def served(folders: Folders) -> Iterator[Worker]:
    """A worker that is never broken or closed by a test."""
    worker = Worker(folders, precision="fp32", max_slots=6, max_waiting=1000)
    yield worker
    worker.close()
    assert not worker.is_alive


@pytest.fixture
def own(folders: Folders) -> Iterator[Callable[..., Worker]]:
    """Return a function that starts a worker of one test."""
    workers: list[Worker] = []

    def start(*names: str, **settings: Any) -> Worker:
        models = {name: folders[name] for name in names}
        workers.append(Worker(models, precision="fp32", **{"max_slots": 4, **settings}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def alone(folders: Folders) -> Callable[..., tuple[int, ...]]:
    """Return a function that gives the answer of `generate` to a single prompt."""
    models = {name: open_model(folder, FP32).eval() for name, folder in folders.items()}

    def answer(name: str, prompt: Sequence[int], limit: int = 8, sampling: Sampling = GREEDY) -> tuple[int, ...]:
        [found] = generate(models[name], [prompt], stop_ids=(), max_new_tokens=limit, sampling=[sampling])
        return found.ids

    return answer


def test_adapters_and_the_base_in_one_batch_give_their_own_answers(served: Worker, alone: Any) -> None:
    random = Random(0)
    requests = []
    for number in range(40):
        prompt = [random.randrange(3, 300) for _ in range(random.choice((1, 3, 9, 20)))]
        sampling = GREEDY if number % 2 else Sampling(1.0, top_p=0.9, seed=number)
        requests.append((NAMES[number % 4], prompt, 1 + number % 9, sampling))
    answers = [ask(served, name, prompt, limit, sampling=sampling) for name, prompt, limit, sampling in requests]
    expected = [alone(*request) for request in requests]
    assert [collected.answer() for collected in answers] == expected
    assert len({alone(name, [5, 6, 7]) for name in NAMES}) == 4, "the models answer differently"


def test_sixteen_threads_get_their_own_answers(served: Worker, alone: Any) -> None:
    prompts = [[7 + i % 10, 9] for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: ask(served, NAMES[1 + i % 2], prompts[i], 3).answer(), range(200)))
    expected = {(name, first): alone(name, [first, 9], 3) for name in NAMES[1:3] for first in range(7, 17)}
    assert answers == [expected[NAMES[1 + i % 2], prompts[i][0]] for i in range(200)]


def test_a_known_beginning_is_not_read_again_and_never_crosses_models(own: Any, alone: Any) -> None:
    worker = own("base", "one", "two")
    prompt = list(range(20, 60))
    for name in ("one", "two", "base", "one", "one"):
        assert ask(worker, name, [*prompt, 5]).answer() == alone(name, [*prompt, 5])
    stats = worker.stats
    assert (stats.prefix_hits, stats.prefix_misses, stats.prefix_hit_tokens) == (2, 3, 2 * 40)
    assert stats.prefix_bytes > 0
    answer = ask(worker, "two", [*prompt, 6]).answer()
    assert answer == alone("two", [*prompt, 6])
    continued = [*prompt, 6, *answer, 8, 9]  # the next turn of a conversation begins with prompt and answer
    assert ask(worker, "two", continued).answer() == alone("two", continued)
    assert worker.stats.prefix_hit_tokens == 2 * 40 + 40 + 48, "without the last token of the answer"


def test_long_prompts_are_read_in_passes_between_which_others_are_answered(own: Any, alone: Any, folders: Any) -> None:
    worker = own("one", "two")
    moments: list[str] = []
    running = Collected()

    def first(event: Event) -> None:
        moments.append("short" if isinstance(event, Token) else "")
        running(event)
        if len(moments) == 2:
            worker.submit(Work("two", tuple(long), Limits(4)), second)

    def second(event: Event) -> None:
        moments.append("long" if isinstance(event, Token) else "")
        late(event)

    from tunesmith.inference import slots

    late, long = Collected(), [5 + i % 200 for i in range(300)]
    before = slots._CPU_PASS_TOKENS
    slots._CPU_PASS_TOKENS = 64
    try:
        worker.submit(Work("one", (5, 6), Limits(30)), first)
        assert running.answer() == alone("one", [5, 6], 30)
        assert late.answer() == alone("two", long, 4)
    finally:
        slots._CPU_PASS_TOKENS = before
    assert moments.index("long") >= 2 + 5, "five passes of 64 tokens, and a token of the other answer between them"


def test_log_probabilities_are_those_of_the_model(own: Any, folders: Folders) -> None:
    worker = own("base", "one")
    prompt = [5 + i % 50 for i in range(140)]  # more than a pass that scores
    collected = ask(worker, "one", prompt, 4, top_scores=3, score_prompt=True)
    ids = [*prompt, *collected.answer()]
    model = open_model(folders["one"], FP32).eval()
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert isinstance(collected.events[0], PromptScored)
    tokens = [*collected.events[0].tokens, *collected.tokens]
    assert [token.id for token in tokens] == ids
    assert tokens[0] == Token(ids[0])
    for place, token in enumerate(tokens[1:]):
        assert token.log_probability == pytest.approx(float(scores[place, token.id]), abs=1e-4)
        best = scores[place].topk(3)
        assert [id_ for id_, _ in token.top] == best.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    plain = ask(worker, "one", prompt, 1, top_scores=0)
    plain.answer()
    assert plain.tokens[0].top == ()
    assert plain.tokens[0].log_probability is not None


def test_adjustments_change_the_answer_and_not_the_log_probabilities(served: Worker, alone: Any) -> None:
    first = alone("one", [5, 6], 1)[0]
    banned = ask(served, "one", [5, 6], 4, adjustment=Adjustment(bias=((first, -100.0),)), top_scores=1)
    assert banned.answer()[0] != first
    assert banned.tokens[0].top[0][0] == first, "of the unchanged distribution"
    forced = ask(served, "one", [5, 6], 6, adjustment=Adjustment(bias=((9, 100.0),)))
    assert forced.answer() == (9,) * 6
    varied = ask(served, "one", [5, 6], 6, adjustment=Adjustment(100.0, 1.0, ((9, 50.0),)))
    assert len(set(varied.answer())) == 6


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


def test_models_are_swapped_while_requests_are_answered(own: Any, alone: Any, folders: Folders) -> None:
    worker = own("base", "one")
    old = [ask(worker, "one", [5 + i, 6], 60) for i in range(8)]
    worker.add("new", folders["two"]).result(60)
    removed = worker.remove("one")
    assert worker.models == ("base", "new")
    with raises(RecipeError, "no-such-model", "one"):
        ask(worker, "one", [5])
    new = [ask(worker, "new", [5 + i, 6], 20) for i in range(8)]
    assert [collected.answer() for collected in old] == [alone("one", [5 + i, 6], 60) for i in range(8)]
    assert [collected.answer() for collected in new] == [alone("two", [5 + i, 6], 20) for i in range(8)]
    removed.result(60)
    with raises(RecipeError, "no-such-model"):
        worker.remove("one")
    worker.add("one", folders["one"]).result(60)
    assert ask(worker, "one", [5, 6]).answer() == alone("one", [5, 6])
    with raises(RecipeError, "exists"):
        worker.add("one", folders["two"]).result(60)
    worker.remove("base").result(60)
    assert worker.models == ("new", "one")
    assert worker.model("new").shares_batches


def test_a_removed_model_s_beginnings_are_forgotten(own: Any, folders: Folders, alone: Any) -> None:
    worker = own("one")
    prompt = list(range(20, 60))
    ask(worker, "one", prompt).answer()
    assert worker.stats.prefix_bytes
    worker.remove("one").result(60)
    worker.add("one", folders["two"]).result(60)
    assert ask(worker, "one", prompt).answer() == alone("two", prompt)
    assert worker.stats.prefix_hits == 0


def test_models_of_other_bases_are_refused(own: Any, folders: Folders, folder_of: Callable[[str], Path]) -> None:
    other = ModelFolder("gpt2", folder_of("gpt2"))
    with raises(RecipeError, "different-bases"):
        Worker({"one": folders["one"], "other": other})
    worker = own("base")
    with raises(RecipeError, "not-an-adapter"):
        worker.add("other", other).result(60)
    assert worker.models == ("base",)


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


@pytest.mark.parametrize("kind", ["mistral", "t5"])
def test_models_without_slots_answer_one_request_at_a_time(
    kind: str, folder_of: Callable[[str], Path], opened: Opened
) -> None:
    worker = Worker({"tiny": ModelFolder(kind, folder_of(kind))}, precision="fp32")
    try:
        assert worker.capacity.one_at_a_time
        assert worker.capacity.slots == 1
        start = (0,) if kind == "t5" else ()
        prompts = [[5 + i, 6, 7] for i in range(5)]
        answers = [ask(worker, "tiny", prompt, decoder_prefix_ids=start, top_scores=1) for prompt in prompts]
        expected = generate(
            opened(kind), prompts, stop_ids=(), max_new_tokens=8, decoder_prefix_ids=start, batch_rows=1
        )
        found = {answer.index: answer.ids for answer in expected}
        assert [collected.answer() for collected in answers] == [found[i] for i in range(5)]
        scored = Work("tiny", (5, 6, 7), Limits(2), decoder_prefix_ids=start, top_scores=1, score_prompt=True)
        if kind == "t5":
            with raises(RecipeError, "no-effect"):
                worker.submit(scored, Collected())
        else:
            collected = Collected()
            worker.submit(scored, collected)
            collected.answer()
            assert isinstance(collected.events[0], PromptScored)
            assert [token.id for token in collected.events[0].tokens] == [5, 6, 7]
    finally:
        worker.close()


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
