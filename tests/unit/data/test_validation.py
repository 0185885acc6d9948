"""Which valid rows the loss is measured on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import RecipeError
from tunesmith.data.validation import MAX_TRAINING_FRACTION, MIN_ROWS, select_validation_rows
from tunesmith.recipe.load import load_recipe


def _recipe(asked: Any, seed: int = 0) -> Any:
    return SimpleNamespace(train=SimpleNamespace(valid_loss_rows=asked), seed=seed)


IDS = [f"row {i}" for i in range(700)]
LENGTHS = [50 + i % 100 for i in range(700)]


def test_validations_read_at_most_a_tenth_of_what_training_reads() -> None:
    for training in (200_000, 1_000_000, 5_000_000):
        places = select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=training)
        read = 11 * sum(LENGTHS[place] for place in places)
        assert 0.7 * MAX_TRAINING_FRACTION * training < read <= MAX_TRAINING_FRACTION * training
    assert len(select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=1e9)) == 700


def test_a_short_training_still_measures_enough_rows_to_choose_by() -> None:
    assert len(select_validation_rows(_recipe("auto"), IDS, LENGTHS, validations=11, training_tokens=10)) == MIN_ROWS
    assert select_validation_rows(_recipe("auto"), IDS[:3], LENGTHS, validations=11, training_tokens=10) == [0, 1, 2]


def test_rows_are_chosen_by_hash_and_stay_when_others_come() -> None:
    few, more = (select_validation_rows(_recipe(n), IDS, LENGTHS, validations=2, training_tokens=1) for n in (20, 40))
    assert set(few) < set(more)
    assert few != select_validation_rows(_recipe(20, seed=1), IDS, LENGTHS, validations=2, training_tokens=1)
    again = select_validation_rows(_recipe(20), IDS[::-1], LENGTHS[::-1], validations=2, training_tokens=1)
    assert {IDS[::-1][place] for place in again} == {IDS[place] for place in few}


def test_the_recipe_may_ask_for_all_rows_or_a_number(tmp_path: Path, tiny: Path) -> None:
    assert len(select_validation_rows(_recipe("all"), IDS, LENGTHS, validations=99, training_tokens=1)) == 700
    assert len(select_validation_rows(_recipe(9999), IDS, LENGTHS, validations=99, training_tokens=1)) == 700
    path = write_recipe(tmp_path, tiny)
    assert load_recipe(path).train.valid_loss_rows == "auto"
    assert load_recipe(path, ["train.valid_loss_rows=5"]).train.valid_loss_rows == 5
    for wrong in ("0", "some", "true"):
        with pytest.raises(RecipeError):
            load_recipe(path, [f"train.valid_loss_rows={wrong}"])
    with pytest.raises(RecipeError, match=r"data\.split\.valid is 0"):
        load_recipe(path, ["train.valid_loss_rows=5", "data.split.valid=0"])
