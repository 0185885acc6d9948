"""Slots: a row is admitted when another is released, rows are independent, and the cache stays in its budget."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.unit.inference.test_generate import LIMIT, ForwardPasses, frequent, ours, prompts, reference

from tunesmith.inference import session, slot_check
from tunesmith.inference.decode_attention import attend_in_strips, cut_strips
from tunesmith.inference.generate import generate
from tunesmith.inference.request import Limits, Request
from tunesmith.inference.slot_check import SlotBudget, slot_budget
from tunesmith.inference.slots import Slots
from tunesmith.kernels.packed_attention import use_packed_attention
from tunesmith.model.trainable import make_trainable
from tunesmith.recipe.tuning import LoraTuning

IN_SLOTS = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "phi", "phi3", "granite", "gpt_neox", "mixtral")
MANY = 21  # more than two strips


def requests(rows: list[list[int]]) -> list[Request]:
    return [Request(i, row, Limits(10)) for i, row in enumerate(rows)]


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect the caches of all slots in which answers are generated."""
    made: list[Any] = []

    class RecordedSlots(Slots):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self.cache)

    monkeypatch.setattr(session, "Slots", RecordedSlots)
    return made  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("kind", IN_SLOTS)
def test_answers_in_any_number_of_slots_are_those_of_transformers(opened: Opened, kind: str, caches: list[Any]) -> None:
    model, rows = opened(kind), prompts(MANY)
    stop_ids = frequent(ours(model, rows))
    wanted = [reference(model, prompt, stop_ids, LIMIT) for prompt in rows]
    assert {stopped for _, stopped in wanted} == {True, False}
    for batch_rows in (None, 1, 3, 10):
        assert ours(model, rows, stop_ids=stop_ids, batch_rows=batch_rows) == wanted
    assert [cache.slots for cache in caches] == [MANY, MANY, 1, 3, 10]


def test_a_row_is_admitted_when_another_is_released(opened: Opened) -> None:
    model, rows = (
        opened("llama"),
        [prompt for prompt in prompts(MANY) if len(prompt) > 2],
    )  # shorter ones are admitted in pairs
    stop_ids = frequent(ours(model, rows))
    wanted = ours(model, rows, stop_ids=stop_ids)
    with ForwardPasses(model) as passes:
        assert ours(model, rows, stop_ids=stop_ids, batch_rows=4) == wanted
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    waiting = [len(wanted[i][0]) + wanted[i][1] for i in order]  # steps of each row
    alive: list[int] = []
    expected = []
    while waiting or alive:
        alive += [waiting.pop(0) for _ in range(min(4 - len(alive), len(waiting)))]
        expected.append(len(alive))
        alive = [steps - 1 for steps in alive if steps > 1]
    steps = [count for count, width in zip(passes.rows, passes.widths, strict=True) if width == 1]
    admitted = [count for count, width in zip(passes.rows, passes.widths, strict=True) if width > 1]
    assert steps == expected
    assert len(admitted) > 5
    assert max(admitted) <= 4


def test_eager_attention_gives_the_same_answers_in_slots(opened: Opened, caches: list[Any]) -> None:
    model, rows = opened("llama"), prompts(MANY)
    wanted = ours(model, rows)
    model.set_attn_implementation("eager")
    assert ours(model, rows) == wanted
    assert len(caches) == 2


def test_models_with_adapters_generate_in_slots(opened: Opened, caches: list[Any]) -> None:
    base, rows = opened("llama"), prompts(MANY)
    plain = ours(base, rows)
    model = make_trainable(base, LoraTuning(method="lora", rank=4, alpha=8), seed=0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    wanted = [reference(model, prompt, (), LIMIT) for prompt in rows]
    assert ours(model, rows, batch_rows=5) == wanted != plain
    with model.disable_adapter():
        assert ours(model, rows, batch_rows=5) == plain
    assert len(caches) == 3


def test_bf16_models_generate_in_slots(opened: Opened) -> None:
    model = opened("llama", torch.bfloat16)
    assert slot_budget(model, prompts()) is not None


def test_generation_restores_the_attention_of_the_model(opened: Opened) -> None:
    model, rows = opened("llama"), prompts(MANY)
    answers = generate(model, rows, stop_ids=(), max_new_tokens=3, batch_rows=9)
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
    model, rows = opened("llama"), prompts(MANY)
    wanted = ours(model, rows)
    room = max(map(len, rows)) + LIMIT
    row_bytes = room * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, fp32
    assert caches.pop().nbytes == MANY * row_bytes
    budget = int(budget_rows * row_bytes)
    monkeypatch.setattr(slot_check, "MAX_CACHE_BYTES", budget)
    with ForwardPasses(model) as passes:
        assert ours(model, rows) == wanted
    assert caches[0].slots == max(1, int(budget_rows))
    assert all(cache.nbytes <= max(budget, row_bytes) for cache in caches), "one row always has room"
    assert max(passes.rows) <= max(cache.slots for cache in caches)


def test_the_cache_takes_at_most_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_check, "available_memory_gib", lambda: 2.0)
    assert slot_check.cache_bytes(torch.device("cpu")) == 2**29
    monkeypatch.setattr(slot_check, "available_memory_gib", lambda: 1000.0)
    assert slot_check.cache_bytes(torch.device("cpu")) == 2**33


def test_a_long_row_gets_larger_slots_than_the_short_rows_after_it(
    opened: Opened, caches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = opened("llama"), [[*range(3, 203)], *prompts(MANY)]
    wanted = ours(model, rows)
    caches.clear()
    monkeypatch.setattr(slot_check, "MAX_CACHE_BYTES", (200 + LIMIT) * 256)
    assert ours(model, rows) == wanted
    assert [(cache.slots, cache.slot_tokens) for cache in caches] == [(1, 200 + LIMIT), (5, 20 + LIMIT)]


def test_rows_are_similar_until_twice_as_many_fit() -> None:
    budget = SlotBudget(token_bytes=10, total_bytes=1000)
    assert budget.max_slots(50, 64) == 2
    assert budget.max_slots(50, 1) == 1
    assert budget.max_slots(500, 64) == 1
    assert budget.count_similar([50, 40, 30, 25, 20, 20], 64) == 3
    assert budget.count_similar([50, 40, 30, 25, 20], 64) == 5, "the last two fit already"
    assert budget.count_similar([50, 40, 30, 25, 20, 20], 3) == 6


def test_strips_are_as_wide_as_their_longest_row() -> None:
    assert cut_strips([5, 9, 4, 4, 3], 2) == [(slice(0, 2), 9), (slice(2, 4), 4), (slice(4, 6), 3)]


def test_released_slots_are_filled_by_other_rows(opened: Opened) -> None:
    model, rows = opened("llama"), prompts(5)
    alone = Slots(model, slots=5, slot_tokens=30)
    with torch.inference_mode():
        alone.admit(requests(rows))
        first = alone.logits().argmax(-1).tolist()
        old_places = alone.release([1, 3])
        assert sorted(old_places) == [0, 2, 4]
        assert alone.free == 2
        alone.append([first[i] for i in old_places])
        found = alone.logits()
        for place, i in enumerate(old_places):
            row = torch.tensor([[*rows[i], first[i]]])
            torch.testing.assert_close(found[place], model(row).logits[0, -1], atol=1e-4, rtol=1e-4)
        assert alone.release([0, 1, 2]) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mistral", "layers"), ("gemma3_text", "layers"), ("mamba", "layers"), ("gpt_neo", "layers"), ("t5", "encoder")],
)
def test_models_that_cannot_use_slots_log_the_reason_once(
    opened: Opened, kind: str, reason: str, caches: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, decoder_prefix_ids = opened(kind), (0,) if kind == "t5" else ()
    ours(model, prompts(), decoder_prefix_ids=decoder_prefix_ids)
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    ours(model, prompts(), decoder_prefix_ids=decoder_prefix_ids)
    assert capsys.readouterr().err == ""
    assert caches == []


def test_the_prefix_is_read_once_and_prompts_without_it_are_admitted(opened: Opened) -> None:
    model, beginning = opened("llama"), list(range(40, 60))
    rows = [[*beginning, 5, 6], beginning, [*beginning, 7], [8, 9, 10]]
    with torch.inference_mode():
        slots = Slots(model, slots=4, slot_tokens=30, prefix=beginning)
        entered = []
        with ForwardPasses(model) as passes:
            while sum(entered) < 4:
                entered.append(slots.admit(requests(rows)[sum(entered) :]))
        assert entered == [1, 1, 1, 1], "prompts with other shared tokens are admitted separately"
        assert passes.widths == [1, 2], "the 19 tokens of the second before its last one are those of the prefix"
        for logits, row in zip(slots.logits(), rows, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)


def drop_arguments(*names: str) -> Any:
    """Return a hook that drops arguments of the forward pass."""

    def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name not in names}

    return drop


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "past_key_values"])
def test_a_model_that_ignores_masks_positions_or_the_cache_gets_no_slots(
    opened: Opened, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = opened("llama")
    model.register_forward_pre_hook(drop_arguments(name), with_kwargs=True)
    assert slot_budget(model, prompts()) is None
    assert capsys.readouterr().err


def test_a_model_whose_forward_lacks_the_arguments_gets_no_slots(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    model, forward = opened("llama"), None

    def plain(input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)  # type: ignore[misc]

    forward, model.forward = model.forward, plain
    assert slot_budget(model, prompts()) is None
    assert "positions" in capsys.readouterr().err


def test_slots_can_be_checked_with_short_prompts(opened: Opened) -> None:
    assert slot_budget(opened("llama"), [[5], [6]]) is not None


def test_a_model_with_packed_attention_generates_in_slots(opened: Opened) -> None:
    model = opened("llama")
    assert use_packed_attention(model)
    assert slot_budget(model, [list(range(5, 40))]) is not None
    assert model.config._attn_implementation == "tunesmith_rows", "unchanged"
