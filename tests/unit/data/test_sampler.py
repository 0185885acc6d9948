"""What many processes wait for each other, by hand."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.records import TokenizedExample
from tunesmith.data.batches import TokenDataset
from tunesmith.data.sampler import assign_ranks, balance_ranks
from tunesmith.recipe.load import load_recipe


def rows(*lengths: int) -> TokenDataset:
    return TokenDataset.of(
        [TokenizedExample(str(n), tuple([1] * size), tuple([True] * size)) for n, size in enumerate(lengths)]
    )


def test_who_has_least_gets_the_longest_row_that_is_left() -> None:
    assert assign_ranks([0, 1, 2, 3, 4], [9, 2, 5, 4, 4], 2) == [[0, 4], [2, 3, 1]]
    assert assign_ranks([7], {7: 3}, 3) == [[7], [], []]


@pytest.mark.parametrize(
    ("lengths", "processes", "expected"),
    [
        ((8, 8, 8, 8), 1, 1.0),
        ((8, 8, 8, 8), 2, 1.0),
        ((8, 8, 8, 8), 8, 0.5),
        ((12, 4, 4, 4), 2, 1.0),
        ((12, 4, 4, 4), 4, 0.5),
    ],
)
def test_others_wait_for_who_has_most(
    lengths: tuple[int, ...], processes: int, expected: float, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tmp_path), ["train.examples_per_step=4", "train.epochs=3"])
    assert balance_ranks(recipe, rows(*lengths), processes) == pytest.approx(expected)
