"""The largest micro-batches that fit are chosen before training, and so is the sharding."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import config
from tests.support.tiny import recipe as write_recipe
from tests.support.tokens import dataset_of

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
    """The shapes of a small model whose memory is mostly activations."""
    folder = tmp_path_factory.mktemp("m")
    model_config = config("llama")
    model_config.hidden_size, model_config.intermediate_size, model_config.num_hidden_layers = 512, 2048, 12
    model_config.save_pretrained(folder)
    return shapes_of(folder)


@pytest.fixture
def tokens() -> TokenDataset:
    rows = [TokenizedExample(str(i), tuple(range(i, i + n)), (False, *[True] * (n - 1))) for i, n in enumerate(LENGTHS)]
    return dataset_of(rows)


def recipe(folder: Path, *changes: str) -> Recipe:
    path = write_recipe(folder, folder)
    return load_recipe(path, ["train.examples_per_step=8", "train.epochs=1", *changes])


def fit(loaded: Recipe, shapes: Shapes, tokens: TokenDataset, gib: float) -> tuple[int, MemoryEstimate]:
    budget = MemoryBudget(4, False, gib)
    policy = make_micro_batch_policy(
        loaded, budget, can_pack=True, share_prefix=True, packed_attention=True, attention_window=2**31
    )
    fitted, memory = fit_micro_batches(loaded, shapes, tokens, policy, budget, new_tokens=0)
    return fitted.max_tokens, memory


def test_micro_batches_are_halved_only_until_they_fit(tmp_path: Path, shapes: Shapes, tokens: TokenDataset) -> None:
    loaded = recipe(tmp_path)
    max_tokens, memory = fit(loaded, shapes, tokens, 1000)
    assert max_tokens == 1024
    for size in (512, 256, max(LENGTHS)):
        needs = fit(recipe(tmp_path, f"train.micro_batch_tokens={size}"), shapes, tokens, 1000)[1]
        assert needs.total < memory.total
        # Just enough memory, of which 15 % stay free; and slightly too little.
        assert fit(loaded, shapes, tokens, needs.total / 0.849) == (size, needs)
        assert fit(loaded, shapes, tokens, needs.total / 0.851)[0] < size or size == max(LENGTHS)


def test_micro_batches_are_single_rows_if_nothing_fits(tmp_path: Path, shapes: Shapes, tokens: TokenDataset) -> None:
    max_tokens, memory = fit(recipe(tmp_path), shapes, tokens, 0.01)
    assert max_tokens == max(LENGTHS)
    assert memory.total > 0.01


@pytest.mark.parametrize("change", ["train.micro_batch=8", "train.micro_batch_tokens=2048"])
def test_micro_batch_settings_of_the_recipe_are_kept(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset, change: str
) -> None:
    loaded = recipe(tmp_path, change)
    assert fit(loaded, shapes, tokens, 0.01) == fit(loaded, shapes, tokens, 1000)


def test_memory_is_that_of_the_step_with_the_longest_rows(tmp_path: Path, shapes: Shapes) -> None:
    def needed(lengths: list[int]) -> float:
        rows = [TokenizedExample(str(i), tuple(range(n)), (False, *[True] * (n - 1))) for i, n in enumerate(lengths)]
        return fit(recipe(tmp_path, "train.examples_per_step=1"), shapes, dataset_of(rows), 1000)[1].total

    assert needed([16] * 200 + [900] + [16] * 200) == needed([900] * 5) > needed([16] * 401)


def test_rows_longer_than_the_positions_are_refused() -> None:
    check_max_positions(None, 10**6)
    check_max_positions(512, 512)
    with raises(RecipeError, "too-many-tokens", 513, 512, where="data.max_tokens_per_example"):
        check_max_positions(512, 513)


def test_bf16_on_a_cpu_has_larger_micro_batches_of_fewer_lengths(tmp_path: Path) -> None:
    options = {"can_pack": True, "share_prefix": True, "packed_attention": True, "attention_window": 2**31}
    fp32, bf16, gpu = (
        make_micro_batch_policy(recipe(tmp_path), budget, **options)
        for budget in (MemoryBudget(4, False, 8), MemoryBudget(2, False, 8), MemoryBudget(2, True, 8))
    )
    assert (fp32.max_tokens, bf16.max_tokens, gpu.max_tokens) == (1024, 2048, 16384)
    assert bf16.packed_length(1000) == 1024 == bf16.packed_length(800)
    assert fp32.packed_length(1000) == gpu.packed_length(1000) == 1024
    assert fp32.packed_length(800) == 800


def test_auto_shards_a_model_that_does_not_fit_on_one_device(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset
) -> None:
    full = recipe(tmp_path, "tuning={method: full}")
    _, memory = estimate_micro_batches(full, shapes, tokens, MemoryBudget(4, True, 1000), new_tokens=0)
    _, sharded = estimate_micro_batches(full, shapes, tokens, MemoryBudget(4, True, 1000), new_tokens=0, shards=4)
    assert sharded.total - sharded.activations < (memory.total - memory.activations) / 2

    def sharding(loaded: Recipe, gib: float, processes: int = 4) -> str:
        return choose_sharding(loaded, shapes, tokens, MemoryBudget(4, True, gib), processes, new_tokens=0)

    assert sharding(full, memory.total) == "none"
    least = memory.total - memory.activations
    assert sharding(full, least) == "full"
    assert sharding(full, least, processes=1) == "none"
    assert sharding(recipe(tmp_path, "tuning={method: qlora}"), 0.001) == "full"
    assert sharding(recipe(tmp_path, "tuning={method: qlora, bits: 8}"), 0.001) == "none"
    for requested in ("none", "full", "node"):
        assert sharding(recipe(tmp_path, f"launch.sharding={requested}"), 0.01) == requested
    assert sharding(recipe(tmp_path, "launch.sharding=full"), 0.01, processes=1) == "none"


def test_sharded_encoder_decoder_cannot_measure_valid_metrics(
    tmp_path: Path, shapes: Shapes, tokens: TokenDataset
) -> None:
    encoder_shapes = replace(shapes, stacks=tuple(replace(stack, encoder=True) for stack in shapes.stacks))
    metrics = "train.valid_metrics=[rougeL]"
    budget = MemoryBudget(4, True, 0.01)
    assert choose_sharding(recipe(tmp_path, metrics), encoder_shapes, tokens, budget, 2, new_tokens=0) == "none"
    with raises(RecipeError, "sharded-generation", where="launch.sharding"):
        choose_sharding(
            recipe(tmp_path, metrics, "launch.sharding=full"), encoder_shapes, tokens, budget, 2, new_tokens=0
        )


def test_fits_for_inference_leaves_memory_for_the_cache(tmp_path: Path, shapes: Shapes) -> None:
    gib = shapes.parameters * 4 / 2**30
    assert fits_for_inference(recipe(tmp_path), shapes, MemoryBudget(4, True, gib / 0.69))
    assert not fits_for_inference(recipe(tmp_path), shapes, MemoryBudget(4, True, gib / 0.71))
    assert fits_for_inference(recipe(tmp_path, "tuning={method: qlora}"), shapes, MemoryBudget(4, True, gib / 0.71))
