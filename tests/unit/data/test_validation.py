"""The valid rows for the validation loss are few, stable and chosen by hash."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import RecipeError
from tunesmith.data.sampler import MAX_VALIDATION_FRACTION, MIN_VALIDATION_ROWS, select_validation_rows
from tunesmith.recipe.load import RecipeProblems, load_recipe


def _recipe(valid_loss_rows: Any, seed: int = 0) -> Any:
    return SimpleNamespace(train=SimpleNamespace(valid_loss_rows=valid_loss_rows), seed=seed)


IDS = [f"row {i}" for i in range(700)]
LENGTHS = [50 + i % 100 for i in range(700)]


def test_validations_read_at_most_a_tenth_of_the_training_tokens() -> None:
    for training in (200_000, 1_000_000, 5_000_000):
        indices = select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=training)
        read = 11 * sum(LENGTHS[index] for index in indices)
        assert 0.7 * MAX_VALIDATION_FRACTION * training < read <= MAX_VALIDATION_FRACTION * training
    assert len(select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=1e9)) == 700


def test_short_training_still_measures_the_minimum_of_rows() -> None:
    assert (
        len(select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=10))
        == MIN_VALIDATION_ROWS
    )
    assert select_validation_rows(_recipe("auto"), IDS[:3], LENGTHS, validations=11, training_tokens=10) == [0, 1, 2]


def test_larger_number_of_rows_adds_to_the_smaller() -> None:
    few, more = (select_validation_rows(_recipe(n), IDS, LENGTHS, validations=2, training_tokens=1) for n in (20, 40))
    assert set(few) < set(more)
    assert few != select_validation_rows(_recipe(20, seed=1), IDS, LENGTHS, validations=2, training_tokens=1)
    again = select_validation_rows(_recipe(20), IDS[::-1], LENGTHS[::-1], validations=2, training_tokens=1)
    assert {IDS[::-1][index] for index in again} == {IDS[index] for index in few}


def test_valid_loss_rows_may_be_all_or_a_number(tmp_path: Path, tiny: Path) -> None:
    assert len(select_validation_rows(_recipe("all"), IDS, LENGTHS, validations=99, training_tokens=1)) == 700
    assert len(select_validation_rows(_recipe(9999), IDS, LENGTHS, validations=99, training_tokens=1)) == 700
    path = write_recipe(tmp_path, tiny)
    assert load_recipe(path).train.valid_loss_rows == "auto"
    assert load_recipe(path, ["train.valid_loss_rows=5"]).train.valid_loss_rows == 5
    for wrong in ("0", "some", "true"):
        with pytest.raises(RecipeError):
            load_recipe(path, [f"train.valid_loss_rows={wrong}"])
    with raises(RecipeProblems, "no-effect", "data.split.valid"):
        load_recipe(path, ["train.valid_loss_rows=5", "data.split.valid=0"])
