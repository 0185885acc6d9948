"""Every recipe in recipes/ is valid."""

import pytest
from tests.contract.sources import ROOT

from tunesmith.recipe.load import load_recipe

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
MIN_RECIPES = 6  # raise it when a recipe is added


def test_no_recipe_is_missing() -> None:
    assert len(RECIPES) >= MIN_RECIPES
    assert (ROOT / "recipes" / "demo" / "recipe.yaml") in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_the_recipe_is_valid(path: object) -> None:
    assert load_recipe(str(path)).name
