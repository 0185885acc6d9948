"""Rows in slots: one enters when another has left, none depends on its neighbours, and memory keeps to its budget."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.unit.inference.test_generate import LIMIT, Watched, frequent, ours, prompts, reference

from tunesmith.inference import session, slot_check
from tunesmith.inference.decode_attention import attend_in_strips, cut_strips
from tunesmith.inference.generate import generate
from tunesmith.inference.slot_check import SlotBudget, slot_budget
from tunesmith.inference.slots import Slots
from tunesmith.kernels.packed_attention import use_packed_attention
from tunesmith.model.adapters import make_trainable
from tunesmith.recipe.tuning import LoraTuning

IN_SLOTS = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "phi", "phi3", "granite", "gpt_neox", "mixtral")
MANY = 21  # more than two strips


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect the caches of all slots that answers are written in."""
    made: list[Any] = []

    class Noted(Slots):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            made.append(self.cache)

    monkeypatch.setattr(session, "Slots", Noted)
    return made  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("kind", IN_SLOTS)
def test_answers_are_those_of_transformers_however_many_slots_there_are(
    opened: Opened, kind: str, caches: list[Any]
) -> None:
    model, asked = opened(kind), prompts(MANY)
    stop_ids = frequent(ours(model, asked))
    wanted = [reference(model, prompt, stop_ids, LIMIT) for prompt in asked]
    assert {stopped for _, stopped in wanted} == {True, False}
    for rows in (None, 1, 3, 10):
        assert ours(model, asked, stop_ids=stop_ids, batch_rows=rows) == wanted
    assert [cache.slots for cache in caches] == [MANY, MANY, 1, 3, 10]


def test_a_row_enters_as_soon_as_another_has_left(opened: Opened) -> None:
    model, asked = opened("llama"), [prompt for prompt in prompts(MANY) if len(prompt) > 2]  # two enter with one
    stop_ids = frequent(ours(model, asked))
    wanted = ours(model, asked, stop_ids=stop_ids)
    with Watched(model) as passes:
        assert ours(model, asked, stop_ids=stop_ids, batch_rows=4) == wanted
    order = sorted(range(len(asked)), key=lambda i: (-len(asked[i]), i))
    waiting = [len(wanted[i][0]) + wanted[i][1] for i in order]  # steps of each row
    alive: list[int] = []
    expected = []
    while waiting or alive:
        alive += [waiting.pop(0) for _ in range(min(4 - len(alive), len(waiting)))]
        expected.append(len(alive))
        alive = [steps - 1 for steps in alive if steps > 1]
    steps = [rows for rows, width in zip(passes.rows, passes.widths, strict=True) if width == 1]
    entered = [rows for rows, width in zip(passes.rows, passes.widths, strict=True) if width > 1]
    assert steps == expected
    assert len(entered) > 5
    assert max(entered) <= 4


def test_attention_of_another_kind_answers_alike(opened: Opened, caches: list[Any]) -> None:
    model, asked = opened("llama"), prompts(MANY)
    wanted = ours(model, asked)
    model.set_attn_implementation("eager")
    assert ours(model, asked) == wanted
    assert len(caches) == 2


def test_adapters_answer_in_slots(opened: Opened, caches: list[Any]) -> None:
    base, asked = opened("llama"), prompts(MANY)
    plain = ours(base, asked)
    model = make_trainable(base, LoraTuning(method="lora", rank=4, alpha=8), seed=0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    wanted = [reference(model, prompt, (), LIMIT) for prompt in asked]
    assert ours(model, asked, batch_rows=5) == wanted != plain
    with model.disable_adapter():
        assert ours(model, asked, batch_rows=5) == plain
    assert len(caches) == 3


def test_low_precision_is_no_reason_to_pad(opened: Opened) -> None:
    model = opened("llama", torch.bfloat16)
    assert slot_budget(model, prompts()) is not None


def test_the_model_is_left_as_it_was(opened: Opened) -> None:
    model, asked = opened("llama"), prompts(MANY)
    answers = generate(model, asked, stop_ids=(), max_new_tokens=3, batch_rows=9)
    next(answers)
    assert model.config._attn_implementation == "sdpa"

    def fails() -> None:
        with attend_in_strips(model.config):
            assert model.config._attn_implementation != "sdpa"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("budget_rows", [0.5, 1, 2.5, 7])
def test_the_cache_stays_within_its_budget(
    opened: Opened, caches: list[Any], monkeypatch: pytest.MonkeyPatch, budget_rows: float
) -> None:
    model, asked = opened("llama"), prompts(MANY)
    wanted = ours(model, asked)
    room = max(map(len, asked)) + LIMIT
    row_bytes = room * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, fp32
    assert caches.pop().held_bytes == MANY * row_bytes
    budget = int(budget_rows * row_bytes)
    monkeypatch.setattr(slot_check, "_MOST_BYTES", budget)
    with Watched(model) as passes:
        assert ours(model, asked) == wanted
    assert caches[0].slots == max(1, int(budget_rows))
    assert all(cache.held_bytes <= max(budget, row_bytes) for cache in caches), "one row always has room"
    assert max(passes.rows) <= max(cache.slots for cache in caches)


def test_no_more_than_a_share_of_what_is_free_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_check, "available_memory_gib", lambda: 2.0)
    assert slot_check._budget(torch.device("cpu")) == 2**29
    monkeypatch.setattr(slot_check, "available_memory_gib", lambda: 1000.0)
    assert slot_check._budget(torch.device("cpu")) == 2**33


def test_one_long_row_does_not_take_the_room_of_many_short_ones(
    opened: Opened, caches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = opened("llama"), [[*range(3, 203)], *prompts(MANY)]
    wanted = ours(model, asked)
    caches.clear()
    monkeypatch.setattr(slot_check, "_MOST_BYTES", (200 + LIMIT) * 256)
    assert ours(model, asked) == wanted
    assert [(cache.slots, cache.room) for cache in caches] == [(1, 200 + LIMIT), (5, 20 + LIMIT)]


def test_rows_of_which_twice_as_many_fit_are_not_alike() -> None:
    room = SlotBudget(token_bytes=10, budget=1000)
    assert room.slots(50, 64) == 2
    assert room.slots(50, 1) == 1
    assert room.slots(500, 64) == 1
    assert room.alike([50, 40, 30, 25, 20, 20], 64) == 3
    assert room.alike([50, 40, 30, 25, 20], 64) == 5, "the last two have room as it is"
    assert room.alike([50, 40, 30, 25, 20, 20], 3) == 6


def test_strips_are_as_wide_as_their_longest_row() -> None:
    assert cut_strips([5, 9, 4, 4, 3], 2) == [(slice(0, 2), 9), (slice(2, 4), 4), (slice(4, 6), 3)]


def test_rows_that_leave_are_closed_up_for(opened: Opened) -> None:
    model, asked = opened("llama"), prompts(5)
    alone = Slots(model, slots=5, room=30)
    with torch.inference_mode():
        alone.enter(asked)
        first = alone.logits().argmax(-1).tolist()
        stood = alone.leave([1, 3])
        assert sorted(stood) == [0, 2, 4]
        assert alone.free == 2
        alone.choose([first[i] for i in stood])
        found = alone.logits()
        for place, i in enumerate(stood):
            row = torch.tensor([[*asked[i], first[i]]])
            torch.testing.assert_close(found[place], model(row).logits[0, -1], atol=1e-4, rtol=1e-4)
        assert alone.leave([0, 1, 2]) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mistral", "not all of its layers"), ("gemma3_text", "not all of its layers"), ("mamba", "not all of its layers"),
     ("gpt_neo", "not all of its layers"), ("t5", "an encoder reads")],
)  # fmt: skip
def test_who_cannot_is_told_why_and_only_once(
    opened: Opened, kind: str, reason: str, caches: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, decoder_start_ids = opened(kind), (0,) if kind == "t5" else ()
    ours(model, prompts(), decoder_start_ids=decoder_start_ids)
    assert f"padded batches: {reason}" in capsys.readouterr().err
    ours(model, prompts(), decoder_start_ids=decoder_start_ids)
    assert capsys.readouterr().err == ""
    assert caches == []


def test_what_rows_begin_with_is_read_once_and_others_may_begin_otherwise(opened: Opened) -> None:
    model, beginning = opened("llama"), list(range(40, 60))
    asked = [[*beginning, 5, 6], beginning, [*beginning, 7], [8, 9, 10]]
    with torch.inference_mode():
        slots = Slots(model, slots=4, room=30, beginning=beginning)
        entered = []
        with Watched(model) as passes:
            while sum(entered) < 4:
                entered.append(slots.enter(asked[sum(entered) :]))
        assert entered == [1, 1, 1, 1], "rows that begin alike are read together"
        assert passes.widths == [1, 19, 2]
        for logits, row in zip(slots.logits(), asked, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)


def dropped(*names: str) -> Any:
    """Return a hook that keeps arguments from a model's forward pass."""

    def drop(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in given.items() if name not in names}

    return drop


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "past_key_values"])
def test_a_model_that_does_not_do_as_it_is_told_is_found_out(
    opened: Opened, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = opened("llama")
    model.register_forward_pre_hook(dropped(name), with_kwargs=True)
    assert slot_budget(model, prompts()) is None
    assert "padded batches: " in capsys.readouterr().err


def test_a_model_that_knows_no_such_argument_is_found_out(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    model, forward = opened("llama"), None

    def plain(input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)  # type: ignore[misc]

    forward, model.forward = model.forward, plain
    assert slot_budget(model, prompts()) is None
    assert "takes no cache, positions and masks of ours: " in capsys.readouterr().err


def test_short_prompts_are_proof_enough(opened: Opened) -> None:
    assert slot_budget(opened("llama"), [[5], [6]]) is not None


def test_a_model_whose_rows_are_attended_one_by_one_in_training_writes_in_slots_too(opened: Opened) -> None:
    model = opened("llama")
    assert use_packed_attention(model)
    assert slot_budget(model, [list(range(5, 40))]) is not None
    assert model.config._attn_implementation == "tunesmith_rows", "it is left as it was"
