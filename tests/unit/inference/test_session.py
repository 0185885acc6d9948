"""A session gives each request the tokens that it gets alone, whenever others are submitted or cancelled."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import Opened

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.inference.generate import generate
from tunesmith.inference.prefix_cache import PrefixCache
from tunesmith.inference.request import Answer, Limits, StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.session import Session

PREFIX = list(range(40, 60))
SLOT_TOKENS = 70


def spell(ids: Sequence[int]) -> str:
    """Decode each id as two letters."""
    return "".join(chr(97 + i % 9) + chr(97 + i % 7) for i in ids)


SessionRequest = tuple[list[int], Limits, Sampling]


def random_request(random: Random) -> SessionRequest:
    prompt = [random.randrange(3, 300) for _ in range(random.choice((1, 2, 5, 9, 25)))]
    if random.random() < 0.4:
        prompt = PREFIX + prompt
    stops = StopStrings(("aab", "cb"), spell) if random.random() < 0.4 else None
    ids = tuple(random.sample(range(320), random.choice((0, 30))))
    limits = Limits(random.randrange(1, 20), ids, stops)
    if random.random() < 0.3:
        return prompt, limits, GREEDY
    sampled = Sampling(
        random.choice((0.4, 1.0, 1.5)),
        top_k=random.choice((None, 5, 50)),
        top_p=random.choice((None, 0.5, 0.95)),
        min_p=random.choice((None, 0.02)),
        repetition_penalty=random.choice((1.0, 1.4)),
        seed=random.randrange(3),
    )
    return prompt, limits, sampled


def alone(model: Any, prompt: Sequence[int], limits: Limits, sampling: Sampling) -> tuple[tuple[int, ...], bool]:
    """Return the answer to a single prompt, which uses no slots but the cache of transformers."""
    [answer] = generate(
        model, [prompt], stop_ids=limits.stop_ids, max_new_tokens=limits.max_new_tokens,
        stop_strings=limits.stop_strings, sampling=[sampling],
    )  # fmt: skip
    return answer.ids, answer.stopped


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_requests_submitted_at_random_moments_get_the_tokens_that_they_get_alone(opened: Opened, kind: str) -> None:
    model, random = opened(kind), Random(kind)
    session = Session(model, slots=6, slot_tokens=SLOT_TOKENS, prefix=PREFIX)
    requests: dict[int, SessionRequest] = {}
    streamed: dict[int, list[int]] = {}
    answers: dict[int, Answer] = {}
    cancelled: set[int] = set()
    while len(requests) < 50 or session.busy:
        for _ in range(random.choice((0, 0, 1, 4)) if len(requests) < 50 else 0):
            request = random_request(random)
            requests[session.submit(*request)] = request
        if requests and random.random() < 0.2:
            dropped = random.choice(list(requests))
            session.cancel(dropped)
            cancelled.add(dropped)
        for index, token in session.step():
            streamed.setdefault(index, []).append(token.id)
        answers |= {answer.index: answer for answer in session.finished()}
    cancelled -= set(answers)  # those were too late
    assert len(requests) >= 50
    assert len(cancelled) > 5
    assert set(answers) == set(requests) - cancelled
    for index, answer in answers.items():
        assert (answer.ids, answer.stopped) == alone(model, *requests[index]), requests[index]
        assert tuple(streamed.get(index, ())) == answer.ids
    ends = {(answer.stopped, requests[i][1].stop_strings is not None) for i, answer in answers.items()}
    assert len(ends) == 4, "some end at a stop string, some at a stop id, some at their limit"
    assert any(streamed.get(index) for index in cancelled), "some are cancelled while they are answered"
    assert any(index not in streamed for index in cancelled), "some are cancelled while they wait"


def test_a_cancelled_request_has_no_answer(opened: Opened) -> None:
    session = Session(opened("llama"), slots=1, slot_tokens=SLOT_TOKENS)
    first, second = (session.submit([5, 6], Limits(1)) for _ in range(2))
    while session.busy:
        session.step()
    session.cancel(first)
    session.cancel(99)
    assert [answer.index for answer in session.finished()] == [second]
    assert session.finished() == []
    assert session.step() == []


def test_sessions_are_independent_and_ignore_signals(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama")
    monkeypatch.setattr(interrupt, "_requested", [2])
    one, other = (Session(model, slots=2, slot_tokens=SLOT_TOKENS) for _ in range(2))
    assert one.submit([5, 6], Limits(4)) == other.submit([7], Limits(4)) == 0
    while one.busy or other.busy:
        one.step()
        other.step()
    found = [session.finished()[0].ids for session in (one, other)]
    monkeypatch.setattr(interrupt, "_requested", [])
    assert found == [alone(model, prompt, Limits(4), GREEDY)[0] for prompt in ([5, 6], [7])]


def test_invalid_requests_are_refused_and_others_are_answered(opened: Opened) -> None:
    session = Session(opened("llama"), slots=2, slot_tokens=10)
    with raises(RecipeError, "empty-prompt"):
        session.submit([], Limits(4))
    with raises(RecipeError, "prompt-too-long", 11, 10):
        session.submit([5] * 7, Limits(4))
    with pytest.raises(RecipeError) as caught:
        session.submit([320], Limits(4))
    assert "320" in str(caught.value)
    with raises(RecipeError, "wrong-sampling"):
        Limits(0)
    session.submit([5] * 6, Limits(4))
    while session.busy:
        session.step()
    assert [len(answer.ids) for answer in session.finished()] == [4]


@pytest.mark.parametrize("kind", ["llama", "mistral", "t5"])
def test_seeded_answers_are_the_same_alone_and_in_any_batch(opened: Opened, kind: str) -> None:
    model, start = opened(kind), (0,) if kind == "t5" else ()
    prompts = [[5 + i] * (3 + i % 4) for i in range(9)]
    sampling = [GREEDY, *(Sampling(1.0, top_p=0.9, repetition_penalty=1.2, seed=i % 3) for i in range(8))]

    def answered(places: Sequence[int], rows: int | None) -> dict[int, tuple[int, ...]]:
        found = generate(
            model, [prompts[i] for i in places], stop_ids=(), max_new_tokens=8, batch_rows=rows,
            decoder_prefix_ids=start,
            sampling=[sampling[i] for i in places],
        )  # fmt: skip
        return {places[answer.index]: answer.ids for answer in found}

    wanted = answered(range(9), None)
    assert len(set(wanted.values())) == 9
    for places, rows in ((range(9), 2), (range(8, -1, -1), 4)):
        assert answered(places, rows) == wanted
    for place in range(9):
        assert answered([place], None) == {place: wanted[place]}


def test_seeded_answers_are_the_same_after_out_of_memory(opened: Opened) -> None:
    model = opened("llama")
    prompts = [[5 + i, 6] for i in range(6)]
    sampling = [Sampling(1.0, seed=1)] * 6

    def answered() -> set[tuple[int, tuple[int, ...]]]:
        found = generate(model, prompts, stop_ids=(), max_new_tokens=8, sampling=sampling)
        return {(answer.index, answer.ids) for answer in found}

    wanted, passes = answered(), [5]

    def out_of_memory_once(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        passes[0] -= 1
        if not passes[0]:
            raise torch.OutOfMemoryError

    with model.register_forward_pre_hook(out_of_memory_once, with_kwargs=True):
        assert answered() == wanted
    assert passes[0] < 0


def test_passes_that_read_prompts_alternate_with_steps_and_known_prompts_need_none(opened: Opened) -> None:
    prefixes = PrefixCache(2**20)
    session = Session(opened("llama"), slots=4, slot_tokens=SLOT_TOKENS, prefixes=prefixes, interleave=True)
    session.submit(PREFIX, Limits(9))
    assert session.step() == []
    session.submit([*PREFIX, 5, 6, 7], Limits(9))
    assert [index for index, _ in session.step()] == [0], "a prompt was read just before, so the first one is decoded"
    assert session.step() == []
    assert session.running == 2
    session.step()
    for _ in range(2):
        session.submit(PREFIX, Limits(9))
        assert session.step() == []
    assert session.running == 4, "nothing was read, so nobody waited for it"
    assert prefixes.hits == 3
    assert {index for index, _ in session.step()} == {0, 1, 2, 3}
