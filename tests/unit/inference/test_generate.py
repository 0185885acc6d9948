"""Greedy answers are those of transformers' generate(), alone and in batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import KINDS, Opened

from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit, Interrupted, RecipeError
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Answer, StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.slot_check import slot_budget

LIMIT = 18  # longer than the sliding window of 16 that half of the architectures have


def prompts(count: int = 6, seed: int = 0) -> list[list[int]]:
    """Return prompts of different lengths: one is a single token, and one is longer than the window."""
    made = torch.Generator().manual_seed(seed)
    lengths = [1, 20, *torch.randint(2, 15, (count - 2,), generator=made).tolist()][:count]
    return [torch.randint(3, 300, (length,), generator=made).tolist() for length in lengths]


def reference(model: Any, prompt: Sequence[int], stop_ids: Sequence[int], limit: int) -> tuple[tuple[int, ...], bool]:
    """Return the answer of transformers, and whether a stop id ended it."""
    ids = torch.tensor([list(prompt)])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0,
        eos_token_id=list(stop_ids) or None,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return (tuple(answer[:-1]), True) if answer[-1] in stop_ids else (tuple(answer), False)


def ours(model: Any, rows: Sequence[Sequence[int]], **settings: Any) -> list[tuple[tuple[int, ...], bool]]:
    options = {"stop_ids": (), "max_new_tokens": LIMIT, **settings}
    found: list[Answer] = sorted(generate(model, rows, **options), key=lambda answer: answer.index)
    assert [answer.index for answer in found] == list(range(len(rows)))
    return [(answer.ids, answer.stopped) for answer in found]


def frequent(answers: Sequence[tuple[tuple[int, ...], bool]]) -> list[int]:
    """Return ids that, as stop ids, end some answers early, some late and some never."""
    tokens = [token for ids, _ in answers for token in ids]
    ranked = sorted(set(tokens), key=lambda token: (-sum(token in ids for ids, _ in answers), token))
    return ranked[1:3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "lfm2", "mamba"])
def test_greedy_answers_are_those_of_transformers(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), prompts()
    free = ours(model, rows)
    assert len({ids for ids, _ in free}) > 3, "equal answers to all prompts would prove nothing"
    stop_ids = frequent(free)
    wanted = [reference(model, prompt, stop_ids, LIMIT) for prompt in rows]
    assert {stopped for _, stopped in wanted} == {True, False}
    assert ours(model, rows, stop_ids=stop_ids, batch_rows=1) == wanted
    assert ours(model, rows, stop_ids=stop_ids, batch_rows=4) == wanted
    assert ours(model, rows, stop_ids=stop_ids, batch_rows=8) == wanted


@pytest.mark.parametrize(("kind", "widths"), [("llama", [19, 1]), ("gemma3_text", [20])])
def test_a_limit_of_one_token_takes_one_step(opened: Opened, kind: str, widths: list[int]) -> None:
    model, rows = opened(kind), prompts()
    wanted = [reference(model, prompt, (), 1) for prompt in rows]
    slot_budget(model, rows)  # its check runs forward passes
    with ForwardPasses(model) as passes:
        assert ours(model, rows, max_new_tokens=1) == wanted
    assert passes.rows == [6] * len(widths)
    assert passes.widths == widths
    assert all(len(ids) == 1 and not stopped for ids, stopped in wanted)
    stop_ids = [wanted[0][0][0]]
    assert ours(model, rows[:1], max_new_tokens=1, stop_ids=stop_ids) == [((), True)]


def test_a_stop_id_at_the_limit_counts_as_stopped(opened: Opened) -> None:
    model, rows = opened("llama"), prompts()[2:3]
    [(ids, _)] = ours(model, rows)
    place = next(place for place in range(2, LIMIT) if ids[place] not in ids[:place])
    stop_ids = [ids[place]]
    assert ours(model, rows, stop_ids=stop_ids, max_new_tokens=place) == [(ids[:place], False)]
    assert ours(model, rows, stop_ids=stop_ids, max_new_tokens=place + 1) == [(ids[:place], True)]


class ForwardPasses:
    """Records the rows, the new tokens and the logits of every forward pass."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rows: list[int] = []
        self.widths: list[int] = []
        self.logits: list[int] = []

    def __enter__(self) -> "ForwardPasses":
        def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.rows.append(kwargs["input_ids"].shape[0])
            self.widths.append(kwargs["input_ids"].shape[1])
            self.logits.append(output.logits.shape[1])

        self._hook = self._model.register_forward_hook(record, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neo", "lfm2"])
def test_rows_leave_the_batch_when_they_stop(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), prompts()
    stop_ids = frequent(ours(model, rows))
    with ForwardPasses(model) as passes:
        answers = ours(model, rows, stop_ids=stop_ids)
    needed = [len(ids) + stopped for ids, stopped in answers]
    if kind == "llama":  # prompts are read into slots before the first step
        assert (passes.rows.pop(0), passes.widths.pop(0)) == (6, 19)
        passes.widths[0] = 20
    assert passes.rows == [sum(count > step for count in needed) for step in range(max(needed))]
    assert passes.rows[-1] < passes.rows[0]
    assert passes.widths == [20] + [1] * (len(passes.rows) - 1)
    assert set(passes.logits) == {1}


def test_prompts_of_similar_length_share_a_batch(opened: Opened) -> None:
    rows = [[5 + i] * length for i, length in enumerate((3, 20, 4, 19, 20, 3))]
    model = opened("mistral")
    with ForwardPasses(model) as passes:
        found = list(generate(model, rows, stop_ids=(), max_new_tokens=1, batch_rows=2))
    assert passes.widths == [20, 19, 3]
    assert [answer.index for answer in found] == [1, 4, 3, 2, 0, 5]


def test_answers_are_yielded_when_they_finish(opened: Opened) -> None:
    model, rows = opened("llama"), prompts()
    stop_ids = frequent(ours(model, rows))
    with ForwardPasses(model) as passes:
        done = []
        for answer in generate(model, rows, stop_ids=stop_ids, max_new_tokens=LIMIT):
            done.append((len(answer.ids) + answer.stopped, passes.widths.count(1)))
    assert all(needed == made for needed, made in done)


def test_no_prompts_give_no_answers(opened: Opened) -> None:
    assert list(generate(opened("llama"), [], stop_ids=(), max_new_tokens=5)) == []


def test_equal_prompts_have_equal_answers(opened: Opened) -> None:
    found = ours(opened("gemma2"), [[5, 6, 7]] * 5)
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_an_answer_ends_at_a_stop_string_that_spans_tokens(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), prompts()
    free = ours(model, rows)

    def letters(ids: Sequence[int]) -> str:
        return "".join(chr(97 + i % 26) * 2 for i in ids)

    text = letters(free[0][0])
    place = next(place for place in range(5, 30, 2) if text.find(text[place : place + 2]) == place)
    stops = StopStrings((text[place : place + 2], "never"), letters)
    assert text[place] != text[place + 1], "the stop string spans two tokens"
    for batch in (rows, rows[:1]):
        ids, stopped = ours(model, batch, stop_strings=stops)[0]
        assert (ids, stopped) == (free[0][0][: place // 2 + 2], True)
        assert stops.cut(letters(ids)) == text[:place]


def test_beam_search_cannot_be_combined_with_sampling(opened: Opened) -> None:
    for settings in ({"sampling": [GREEDY, Sampling(1.0)]}, {"stop_strings": StopStrings(("a",), str)}):
        with raises(RecipeError, "wrong-sampling"):
            ours(opened("llama"), [[5], [6]], beams=2, **settings)


def test_the_generation_config_of_the_model_is_ignored(opened: Opened) -> None:
    model, rows = opened("llama"), prompts(4)
    wanted = ours(model, rows)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_length = 3
    model.config.eos_token_id = wanted[0][0][0]
    assert ours(model, rows) == wanted


def test_a_signal_interrupts_generation_and_gradients_stay_enabled(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("llama")
    answers = generate(model, prompts(), stop_ids=(), max_new_tokens=LIMIT, batch_rows=2)
    first = next(answers)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert len(first.ids) == LIMIT
    next(answers)
    monkeypatch.setattr(interrupt, "_requested", [2])
    with pytest.raises(Interrupted):
        next(answers)
    assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "lfm2", "mamba"])
def test_a_shared_prefix_is_read_once(opened: Opened, kind: str) -> None:
    model, beginning = opened(kind), prompts(2)[1]
    rows = [beginning + prompt for prompt in prompts()] + [beginning]
    wanted = [reference(model, prompt, (), LIMIT) for prompt in rows]
    slot_budget(model, rows)  # its check runs forward passes
    with ForwardPasses(model) as passes:
        assert ours(model, rows) == wanted
    plain = kind in ("llama", "qwen2", "qwen3", "gpt2", "phi", "phi3", "granite")
    assert (passes.rows[:2] == [1, 7]) == plain, "padding after the prefix would shift a window or a recurrent state"
    if plain:
        assert passes.widths[:3] == [19, 20, 1]  # all but the last token of each prompt, which the first step reads
        with ForwardPasses(model) as passes:
            ours(model, rows, beams=2)
        assert (passes.rows[:2], passes.widths[:2]) == ([1, 7], [19, 21])


class OutOfMemoryAbove:
    """Raises an error in forward passes with more than `rows` rows."""

    def __init__(self, model: Any, rows: int, error: Exception) -> None:
        self._hook = model.register_forward_pre_hook(self._check, with_kwargs=True)
        self._rows, self._error = rows, error

    def _check(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[0] > self._rows:
            raise self._error

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_a_batch_too_large_for_memory_is_halved_and_each_prompt_answered_once(opened: Opened, error: Exception) -> None:
    model, rows = opened("llama"), prompts()
    wanted = ours(model, rows)
    with OutOfMemoryAbove(model, 2, error):
        assert ours(model, rows) == wanted
    with OutOfMemoryAbove(model, 0, error), raises(DoesNotFit, "out-of-memory", 20):
        ours(model, rows)


def test_other_errors_are_not_taken_for_out_of_memory(opened: Opened) -> None:
    error = RuntimeError("mat1 and mat2")
    with OutOfMemoryAbove(model := opened("llama"), 2, error), pytest.raises(RuntimeError) as caught:
        ours(model, prompts())
    assert caught.value is error


def test_our_generate_does_not_call_that_of_transformers() -> None:
    """Otherwise the comparisons above would prove nothing."""
    import tunesmith.inference.generate as module

    assert ".generate(" not in inspect.getsource(module)
