"""The rows of a step follow from the seed and the step, and ranks get about equally many tokens."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tiny import recipe as write_recipe
from tests.support.tokens import dataset_of

from tunesmith.core.records import TokenizedExample
from tunesmith.data.sampler import assign_ranks, batch_indices, epoch_order, estimate_rank_utilization
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.recipe.load import load_recipe


def rows(*lengths: int) -> TokenDataset:
    return dataset_of(
        [TokenizedExample(str(n), tuple([1] * size), tuple([True] * size)) for n, size in enumerate(lengths)]
    )


def test_assign_ranks_gives_the_longest_row_to_the_smallest_load() -> None:
    assert assign_ranks([0, 1, 2, 3, 4], [9, 2, 5, 4, 4], 2) == [[0, 4], [2, 3, 1]]
    assert assign_ranks([7], {7: 3}, 3) == [[7], [], []]


@pytest.mark.parametrize(
    ("lengths", "world_size", "expected"),
    [
        ((8, 8, 8, 8), 1, 1.0),
        ((8, 8, 8, 8), 2, 1.0),
        ((8, 8, 8, 8), 8, 0.5),
        ((12, 4, 4, 4), 2, 1.0),
        ((12, 4, 4, 4), 4, 0.5),
    ],
)
def test_rank_utilization_is_the_mean_load_over_the_largest(
    lengths: tuple[int, ...], world_size: int, expected: float, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tmp_path), ["train.examples_per_step=4", "train.epochs=3"])
    assert estimate_rank_utilization(recipe, rows(*lengths), world_size) == pytest.approx(expected)


def steps(rows: int, per_step: int, total: int, seed: int = 0) -> list[list[int]]:
    count = -(-total // per_step)
    return [
        batch_indices(step, rows=rows, examples_per_step=per_step, total_examples=total, seed=seed)
        for step in range(count)
    ]


@given(rows=st.integers(1, 40), per_step=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
def test_every_row_is_used_exactly_once_per_epoch(rows: int, per_step: int, epochs: int, seed: int) -> None:
    used = [row for step in steps(rows, per_step, epochs * rows, seed) for row in step]
    for epoch in range(epochs):
        assert sorted(used[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert len(used) == epochs * rows


@given(rows=st.integers(1, 30), per_step=st.integers(1, 20), total=st.integers(1, 90))
def test_all_steps_but_the_last_are_full(rows: int, per_step: int, total: int) -> None:
    sizes = [len(step) for step in steps(rows, per_step, total)]
    assert sizes[:-1] == [per_step] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= per_step
    assert sum(sizes) == total


def test_rows_of_a_step_follow_from_seed_and_step() -> None:
    expected = steps(20, 3, 60, seed=5)
    settings = {"rows": 20, "examples_per_step": 3, "total_examples": 60, "seed": 5}
    for step in (19, 0, 7, 7, 12):
        epoch_order.cache_clear()
        assert batch_indices(step, **settings) == expected[step]
    longer = {**settings, "total_examples": 6000}
    assert [batch_indices(step, **longer) for step in range(20)] == expected, "nor on the length of the run"
    assert steps(20, 3, 60, seed=6) != expected


def test_order_differs_by_epoch_and_seed() -> None:
    orders = {tuple(order) for seed in (0, 1, 2**63 - 1) for order in steps(50, 50, 250, seed)}
    assert len(orders) == 15


def test_order_is_the_same_on_every_machine() -> None:
    assert steps(10, 10, 10, seed=3) == [[6, 8, 4, 1, 3, 5, 9, 7, 0, 2]]
