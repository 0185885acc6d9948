"""The columns that a recipe's templates use, and which of them may be absent."""

import pytest
from tests.unit.recipe.conftest import Load, changed

from tunesmith.recipe.columns import optional_columns, prompt_columns, required_columns
from tunesmith.recipe.load import RecipeProblems


def test_a_column_may_be_marked_as_optional(load: Load) -> None:
    recipe = load(changed('"Say {mr}"', '"Say {mr} {more?}"'))
    assert prompt_columns(recipe.data) == ("more", "mr")
    assert optional_columns(recipe.data) == {"more"}
    assert "more" not in required_columns(recipe.data)
    recipe = load(changed('"Say {mr}"', '"{more?} {mr} {more}"'))
    assert optional_columns(recipe.data) == set()
    with pytest.raises(RecipeProblems):
        load(changed('"Say {mr}"', '"Say {?}"'))
