"""The worker answers each request as if it were alone, whatever it asks for and whatever is in its batch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import Opened
from tests.support.workers import FP32, NAMES, Collected, Folders, ask

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference import slots
from tunesmith.inference.adjustment import Adjustment
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Limits, Token
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.model.adapters import open_model
from tunesmith.serve.work import Event, PromptScored, Work
from tunesmith.serve.worker import Worker


@pytest.fixture(scope="module")
def shared(folders: Folders) -> Iterator[Worker]:
    """A worker that is never broken or closed by a test."""
    worker = Worker(folders, precision="fp32", max_slots=6, max_waiting=1000)
    yield worker
    worker.close()
    assert not worker.is_alive


def test_adapters_and_the_base_in_one_batch_give_their_own_answers(shared: Worker, alone: Any) -> None:
    random = Random(0)
    requests = []
    for number in range(40):
        prompt = [random.randrange(3, 300) for _ in range(random.choice((1, 3, 9, 20)))]
        sampling = GREEDY if number % 2 else Sampling(1.0, top_p=0.9, seed=number)
        requests.append((NAMES[number % 4], prompt, 1 + number % 9, sampling))
    answers = [ask(shared, name, prompt, limit, sampling=sampling) for name, prompt, limit, sampling in requests]
    expected = [alone(*request) for request in requests]
    assert [collected.answer() for collected in answers] == expected
    assert len({alone(name, [5, 6, 7]) for name in NAMES}) == 4, "the models answer differently"


def test_sixteen_threads_get_their_own_answers(shared: Worker, alone: Any) -> None:
    prompts = [[7 + i % 10, 9] for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: ask(shared, NAMES[1 + i % 2], prompts[i], 3).answer(), range(200)))
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


def test_long_prompts_are_read_in_passes_between_which_others_are_answered(
    own: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    late, long = Collected(), [5 + i % 200 for i in range(300)]
    monkeypatch.setattr(slots, "_CPU_PASS_TOKENS", 64)
    worker.submit(Work("one", (5, 6), Limits(30)), first)
    assert running.answer() == alone("one", [5, 6], 30)
    assert late.answer() == alone("two", long, 4)
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


def test_adjustments_change_the_answer_and_not_the_log_probabilities(shared: Worker, alone: Any) -> None:
    first = alone("one", [5, 6], 1)[0]
    banned = ask(shared, "one", [5, 6], 4, adjustment=Adjustment(bias=((first, -100.0),)), top_scores=1)
    assert banned.answer()[0] != first
    assert banned.tokens[0].top[0][0] == first, "of the unchanged distribution"
    forced = ask(shared, "one", [5, 6], 6, adjustment=Adjustment(bias=((9, 100.0),)))
    assert forced.answer() == (9,) * 6
    varied = ask(shared, "one", [5, 6], 6, adjustment=Adjustment(100.0, 1.0, ((9, 50.0),)))
    assert len(set(varied.answer())) == 6


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
