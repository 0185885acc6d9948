"""The largest division of rows that fits is chosen, before anything is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import config
from tests.support.tiny import recipe as write_recipe

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.records import TokenizedExample
from tunesmith.data.fit import (
    MemoryBudget,
    check_max_positions,
    choose_sharding,
    estimate_micro_batches,
    fit_micro_batches,
    fits_for_inference,
    make_micro_batch_policy,
)
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.estimate.memory import MemoryEstimate
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe

LENGTHS = [40, 60, 100, 100, 120, 200, 64, 64] * 3


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Those of a small model, whose activations are most of what it needs."""
    folder = tmp_path_factory.mktemp("m")
    shape = config("llama")
    shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers = 512, 2048, 12
    shape.save_pretrained(folder)
    return shapes_of(folder)


@pytest.fixture
def tokens() -> TokenDataset:
    rows = [TokenizedExample(str(i), tuple(range(i, i + n)), (False, *[True] * (n - 1))) for i, n in enumerate(LENGTHS)]
    return TokenDataset.from_examples(rows)


def recipe(folder: Path, *changes: str) -> Recipe:
    path = write_recipe(folder, folder)
    return load_recipe(path, ["train.examples_per_step=8", "train.epochs=1", *changes])


def fit(asked: Recipe, shapes: Shapes, tokens: TokenDataset, gib: float) -> tuple[int, MemoryEstimate]:
    room = MemoryBudget(4, False, gib)
    division = make_micro_batch_policy(
        asked, room, can_pack=True, share_prefix=True, packed_attention=True, attention_window=2**31
    )
    found, memory = fit_micro_batches(asked, shapes, tokens, division, room, new_tokens=0)
    return found.max_tokens, memory


def test_less_memory_takes_smaller_passes_and_no_smaller_than_needed(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset
) -> None:
    asked = recipe(tmp_path)
    most, memory = fit(asked, shapes, tokens, 1000)
    assert most == 1024
    for size in (512, 256, max(LENGTHS)):
        needs = fit(recipe(tmp_path, f"train.micro_batch_tokens={size}"), shapes, tokens, 1000)[1]
        assert needs.total < memory.total
        # Just enough, of which 15 % are left free; and a little less.
        assert fit(asked, shapes, tokens, needs.total / 0.849) == (size, needs)
        assert fit(asked, shapes, tokens, needs.total / 0.851)[0] < size or size == max(LENGTHS)


def test_rows_go_one_by_one_where_nothing_fits(tmp_path: Path, shapes: Shapes, tokens: TokenDataset) -> None:
    most, memory = fit(recipe(tmp_path), shapes, tokens, 0.01)
    assert most == max(LENGTHS)
    assert memory.total > 0.01


@pytest.mark.parametrize("change", ["train.micro_batch=8", "train.micro_batch_tokens=2048"])
def test_what_the_recipe_says_stands(tmp_path: Path, shapes: Shapes, tokens: TokenDataset, change: str) -> None:
    asked = recipe(tmp_path, change)
    assert fit(asked, shapes, tokens, 0.01) == fit(asked, shapes, tokens, 1000)


def test_the_step_with_the_longest_rows_counts(tmp_path: Path, shapes: Shapes) -> None:
    def needed(lengths: list[int]) -> float:
        rows = [TokenizedExample(str(i), tuple(range(n)), (False, *[True] * (n - 1))) for i, n in enumerate(lengths)]
        return fit(recipe(tmp_path, "train.examples_per_step=1"), shapes, TokenDataset.from_examples(rows), 1000)[
            1
        ].total

    assert needed([16] * 200 + [900] + [16] * 200) == needed([900] * 5) > needed([16] * 401)


def test_rows_beyond_the_last_position_are_refused() -> None:
    check_max_positions(None, 10**6)
    check_max_positions(512, 512)
    with raises(RecipeError, "too-many-tokens", 513, 512, where="data.max_tokens_per_example"):
        check_max_positions(512, 513)


def test_numbers_of_two_bytes_go_through_in_larger_passes_of_fewer_shapes(tmp_path: Path) -> None:
    how = {"can_pack": True, "share_prefix": True, "packed_attention": True, "attention_window": 2**31}
    four, two, gpu = (
        make_micro_batch_policy(recipe(tmp_path), room, **how)
        for room in (MemoryBudget(4, False, 8), MemoryBudget(2, False, 8), MemoryBudget(2, True, 8))
    )
    assert (four.max_tokens, two.max_tokens, gpu.max_tokens) == (1024, 2048, 16384)
    assert two.packed_length(1000) == 1024 == two.packed_length(800)
    assert four.packed_length(1000) == gpu.packed_length(1000) == 1024
    assert four.packed_length(800) == 800


def test_layers_are_divided_where_all_of_them_have_no_room(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset
) -> None:
    full = recipe(tmp_path, "tuning={method: full}")
    _, memory = estimate_micro_batches(full, shapes, tokens, MemoryBudget(4, True, 1000), new_tokens=0)
    _, parts = estimate_micro_batches(full, shapes, tokens, MemoryBudget(4, True, 1000), new_tokens=0, shards=4)
    assert parts.total - parts.activations < (memory.total - memory.activations) / 2

    def kept(asked: Recipe, gib: float, processes: int = 4) -> str:
        return choose_sharding(asked, shapes, tokens, MemoryBudget(4, True, gib), processes, new_tokens=0)

    assert kept(full, memory.total) == "none"
    least = memory.total - memory.activations
    assert kept(full, least) == "full"
    assert kept(full, least, processes=1) == "none"
    assert kept(recipe(tmp_path, "tuning={method: qlora}"), 0.001) == "full"
    assert kept(recipe(tmp_path, "tuning={method: qlora, bits: 8}"), 0.001) == "none"
    for asked in ("none", "full", "node"):
        assert kept(recipe(tmp_path, f"launch.sharding={asked}"), 0.01) == asked
    assert kept(recipe(tmp_path, "launch.sharding=full"), 0.01, processes=1) == "none"


def test_a_model_with_an_encoder_in_parts_does_not_answer_while_it_trains(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset
) -> None:
    has_encoder = replace(shapes, stacks=tuple(replace(stack, encoder=True) for stack in shapes.stacks))
    answers = "train.valid_metrics=[rougeL]"
    room = MemoryBudget(4, True, 0.01)
    assert choose_sharding(recipe(tmp_path, answers), has_encoder, tokens, room, 2, new_tokens=0) == "none"
    with raises(RecipeError, "sharded-generation", where="launch.sharding"):
        choose_sharding(recipe(tmp_path, answers, "launch.sharding=full"), has_encoder, tokens, room, 2, new_tokens=0)


def test_weights_must_leave_room_for_what_is_read(tmp_path: Path, shapes: Shapes) -> None:
    gib = shapes.parameters * 4 / 2**30
    assert fits_for_inference(recipe(tmp_path), shapes, MemoryBudget(4, True, gib / 0.69))
    assert not fits_for_inference(recipe(tmp_path), shapes, MemoryBudget(4, True, gib / 0.71))
    assert fits_for_inference(recipe(tmp_path, "tuning={method: qlora}"), shapes, MemoryBudget(4, True, gib / 0.71))
