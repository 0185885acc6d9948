"""Every recipe that is shipped is right."""

import pytest
from tests.contract.sources import ROOT

from tunesmith.recipe.load import load_recipe

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
FEWEST = 6  # raised with every recipe that is added, so that none is lost without a word


def test_none_is_lost() -> None:
    assert len(RECIPES) >= FEWEST
    assert (ROOT / "recipes" / "demo" / "recipe.yaml") in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_it_loads(path: object) -> None:
    assert load_recipe(str(path)).name
