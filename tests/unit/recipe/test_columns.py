"""Columns of a recipe's templates: required and optional ones."""

from tests.support.errors import raises
from tests.unit.recipe.conftest import Load, changed

from tunesmith.recipe.columns import message_columns, optional_columns, prompt_columns, required_columns
from tunesmith.recipe.load import RecipeProblems


def test_optional_columns(load: Load) -> None:
    recipe = load(changed('"Say {mr}"', '"Say {mr} {more?}"'))
    assert prompt_columns(recipe.data) == ("more", "mr")
    assert optional_columns(recipe.data) == {"more"}
    assert "more" not in required_columns(recipe.data)
    recipe = load(changed('"Say {mr}"', '"{more?} {mr} {more}"'))
    assert optional_columns(recipe.data) == set(), "one use requires it"
    with raises(RecipeProblems, "wrong-template", "`?`"):
        load(changed('"Say {mr}"', '"Say {?}"'))


def test_every_column_of_messages_is_required(load: Load) -> None:
    turns = changed('prompt: "Say {mr}"\n  response: "{ref}"', "messages: [prompt, completion]")
    recipe = load(turns)
    assert message_columns(recipe.data) == ("prompt", "completion")
    assert required_columns(recipe.data) == ("prompt", "completion")
