"""Our answers are those of transformers' own generate(), one by one or side by side."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened

from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit, Interrupted, RecipeError
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Answer, StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.slot_check import slot_budget

LIMIT = 18  # beyond the sliding window of 16 that half of the architectures have


def prompts(count: int = 6, seed: int = 0) -> list[list[int]]:
    """Return prompts of different lengths, one of them a single token, one longer than the window."""
    made = torch.Generator().manual_seed(seed)
    lengths = [1, 20, *torch.randint(2, 15, (count - 2,), generator=made).tolist()][:count]
    return [torch.randint(3, 300, (length,), generator=made).tolist() for length in lengths]


def reference(model: Any, prompt: Sequence[int], stop_ids: Sequence[int], limit: int) -> tuple[tuple[int, ...], bool]:
    """Return what transformers answers, and whether it stopped by itself."""
    ids = torch.tensor([list(prompt)])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0,
        eos_token_id=list(stop_ids) or None,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return (tuple(said[:-1]), True) if said[-1] in stop_ids else (tuple(said), False)


def ours(model: Any, asked: Sequence[Sequence[int]], **settings: Any) -> list[tuple[tuple[int, ...], bool]]:
    given = {"stop_ids": (), "max_new_tokens": LIMIT, **settings}
    found: list[Answer] = sorted(generate(model, asked, **given), key=lambda answer: answer.index)
    assert [answer.index for answer in found] == list(range(len(asked)))
    return [(answer.ids, answer.stopped) for answer in found]


def frequent(answers: Sequence[tuple[tuple[int, ...], bool]]) -> list[int]:
    """Return ids that end some answers early, some late and some never, if they are taken as stop ids."""
    tokens = [token for ids, _ in answers for token in ids]
    ranked = sorted(set(tokens), key=lambda token: (-sum(token in ids for ids, _ in answers), token))
    return ranked[1:3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "lfm2", "mamba"])
def test_answers_are_those_of_transformers(opened: Opened, kind: str) -> None:
    model, asked = opened(kind), prompts()
    free = ours(model, asked)
    assert len({ids for ids, _ in free}) > 3, "a model that says the same to everything proves nothing"
    stop_ids = frequent(free)
    wanted = [reference(model, prompt, stop_ids, LIMIT) for prompt in asked]
    assert {stopped for _, stopped in wanted} == {True, False}
    assert ours(model, asked, stop_ids=stop_ids, batch_rows=1) == wanted
    assert ours(model, asked, stop_ids=stop_ids, batch_rows=4) == wanted
    assert ours(model, asked, stop_ids=stop_ids, batch_rows=8) == wanted


@pytest.mark.parametrize(("kind", "widths"), [("llama", [19, 1]), ("gemma3_text", [20])])
def test_one_token_is_one_step(opened: Opened, kind: str, widths: list[int]) -> None:
    model, asked = opened(kind), prompts()
    wanted = [reference(model, prompt, (), 1) for prompt in asked]
    slot_budget(model, asked)  # which has passes of its own
    with Watched(model) as passes:
        assert ours(model, asked, max_new_tokens=1) == wanted
    assert passes.rows == [6] * len(widths)
    assert passes.widths == widths
    assert all(len(ids) == 1 and not stopped for ids, stopped in wanted)
    stop_ids = [wanted[0][0][0]]
    assert ours(model, asked[:1], max_new_tokens=1, stop_ids=stop_ids) == [((), True)]


def test_a_stop_at_the_last_token_that_is_allowed_is_a_stop(opened: Opened) -> None:
    model, asked = opened("llama"), prompts()[2:3]
    [(ids, _)] = ours(model, asked)
    place = next(place for place in range(2, LIMIT) if ids[place] not in ids[:place])
    stop_ids = [ids[place]]
    assert ours(model, asked, stop_ids=stop_ids, max_new_tokens=place) == [(ids[:place], False)]
    assert ours(model, asked, stop_ids=stop_ids, max_new_tokens=place + 1) == [(ids[:place], True)]


class Watched:
    """Counts the rows and the new tokens of every forward pass."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.rows: list[int] = []
        self.widths: list[int] = []
        self.logits: list[int] = []

    def __enter__(self) -> "Watched":
        def note(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
            self.rows.append(given["input_ids"].shape[0])
            self.widths.append(given["input_ids"].shape[1])
            self.logits.append(output.logits.shape[1])

        self._hook = self._model.register_forward_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neo", "lfm2"])
def test_rows_leave_the_batch_as_soon_as_they_stop(opened: Opened, kind: str) -> None:
    model, asked = opened(kind), prompts()
    stop_ids = frequent(ours(model, asked))
    with Watched(model) as passes:
        answers = ours(model, asked, stop_ids=stop_ids)
    needed = [len(ids) + stopped for ids, stopped in answers]
    if kind == "llama":  # which enters its slots before the first step
        assert (passes.rows.pop(0), passes.widths.pop(0)) == (6, 19)
        passes.widths[0] = 20
    assert passes.rows == [sum(count > step for count in needed) for step in range(max(needed))]
    assert passes.rows[-1] < passes.rows[0]
    assert passes.widths == [20] + [1] * (len(passes.rows) - 1)
    assert set(passes.logits) == {1}


def test_long_prompts_are_not_padded_beside_short_ones(opened: Opened) -> None:
    asked = [[5 + i] * length for i, length in enumerate((3, 20, 4, 19, 20, 3))]
    model = opened("mistral")
    with Watched(model) as passes:
        found = list(generate(model, asked, stop_ids=(), max_new_tokens=1, batch_rows=2))
    assert passes.widths == [20, 19, 3]
    assert [answer.index for answer in found] == [1, 4, 3, 2, 0, 5]


def test_answers_come_as_they_finish(opened: Opened) -> None:
    model, asked = opened("llama"), prompts()
    stop_ids = frequent(ours(model, asked))
    with Watched(model) as passes:
        done = []
        for answer in generate(model, asked, stop_ids=stop_ids, max_new_tokens=LIMIT):
            done.append((len(answer.ids) + answer.stopped, passes.widths.count(1)))
    assert all(needed == made for needed, made in done)


def test_nothing_asked_is_nothing_answered(opened: Opened) -> None:
    assert list(generate(opened("llama"), [], stop_ids=(), max_new_tokens=5)) == []


def test_equal_prompts_have_equal_answers(opened: Opened) -> None:
    found = ours(opened("gemma2"), [[5, 6, 7]] * 5)
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_an_answer_ends_at_a_stop_string_that_spans_tokens(opened: Opened, kind: str) -> None:
    model, asked = opened(kind), prompts()
    free = ours(model, asked)

    def letters(ids: Sequence[int]) -> str:
        return "".join(chr(97 + i % 26) * 2 for i in ids)

    text = letters(free[0][0])
    place = next(place for place in range(5, 30, 2) if text.find(text[place : place + 2]) == place)
    stops = StopStrings((text[place : place + 2], "never"), letters)
    assert text[place] != text[place + 1], "it has a letter of each of two tokens"
    for batch in (asked, asked[:1]):
        ids, stopped = ours(model, batch, stop_strings=stops)[0]
        assert (ids, stopped) == (free[0][0][: place // 2 + 2], True)
        assert stops.cut(letters(ids)) == text[:place]


def test_beams_take_no_sampling(opened: Opened) -> None:
    for settings in ({"sampling": [GREEDY, Sampling(1.0)]}, {"stop_strings": StopStrings(("a",), str)}):
        with pytest.raises(RecipeError):
            ours(opened("llama"), [[5], [6]], beams=2, **settings)


def test_what_the_model_brings_along_does_not_change_its_answers(opened: Opened) -> None:
    model, asked = opened("llama"), prompts(4)
    wanted = ours(model, asked)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_length = 3
    model.config.eos_token_id = wanted[0][0][0]
    assert ours(model, asked) == wanted


def test_a_signal_ends_it_and_gradients_are_left_as_they_were(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_prompts_begin_with_is_read_once(opened: Opened, kind: str) -> None:
    model, beginning = opened(kind), prompts(2)[1]
    asked = [beginning + prompt for prompt in prompts()] + [beginning]
    wanted = [reference(model, prompt, (), LIMIT) for prompt in asked]
    slot_budget(model, asked)  # which has passes of its own
    with Watched(model) as passes:
        assert ours(model, asked) == wanted
    plain = kind in ("llama", "qwen2", "qwen3", "gpt2", "phi", "phi3", "granite")
    assert (passes.rows[:2] == [1, 7]) == plain, "padding between would shift a window or a state"
    if plain:
        assert passes.widths[:3] == [19, 20, 1]  # all but the last token of each, which has to say something
        with Watched(model) as passes:
            ours(model, asked, beams=2)
        assert (passes.rows[:2], passes.widths[:2]) == ([1, 7], [19, 21])


class Scarce:
    """Memory for so many rows."""

    def __init__(self, model: Any, rows: int, error: Exception) -> None:
        self._hook = model.register_forward_pre_hook(self._check, with_kwargs=True)
        self._rows, self._error = rows, error

    def _check(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[0] > self._rows:
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
def test_a_batch_too_large_for_memory_is_cut_and_each_prompt_answered_once(opened: Opened, error: Exception) -> None:
    model, asked = opened("llama"), prompts()
    wanted = ours(model, asked)
    with Scarce(model, 2, error):
        assert ours(model, asked) == wanted
    with Scarce(model, 0, error), pytest.raises(DoesNotFit, match="one prompt of 20 tokens"):
        ours(model, asked)


def test_other_errors_are_not_taken_for_a_lack_of_memory(opened: Opened) -> None:
    with Scarce(model := opened("llama"), 2, RuntimeError("mat1 and mat2")), pytest.raises(RuntimeError, match="mat1"):
        ours(model, prompts())


def test_the_reference_is_not_ours() -> None:
    """The comparison above is worth nothing if transformers' generate were called by ours."""
    import tunesmith.inference.generate as module

    assert ".generate(" not in inspect.getsource(module)
