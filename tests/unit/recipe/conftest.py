"""A recipe as text for the tests of this folder, and how to load it or collect what is wrong with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.recipe.load import RecipeProblems, load_recipe
from tunesmith.recipe.schema import Recipe

# The tests name its lines by number.
RECIPE = """\
name: viggo
model: {base: org/model}
data:
  source: {file: rows.csv}
  task: chat
  prompt: "Say {mr}"
  response: "{ref}"
  split:
    valid: 0.1
tuning:
  method: lora
  rank: 8
train:
  learning_rate: 2e-4
evaluate:
  metrics: [rougeL, exact_match]
  primary: rougeL
  guards:
    - metric: exact_match
      max_drop: 0.02
"""

Load = Callable[..., Recipe]
Told = list[tuple[str, str, str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write text to recipe.yaml and load it, with overrides."""

    def write_and_load(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides)

    return write_and_load


@pytest.fixture
def told(load: Load) -> Callable[..., Told]:
    """Load a recipe that is wrong; return (where, key, message) of each problem."""

    def problems(text: str, *overrides: str) -> Told:
        with pytest.raises(RecipeProblems) as caught:
            load(text, *overrides)
        return [(one.where, one.key, one.message) for one in caught.value.problems]

    return problems


def changed(old: str, new: str) -> str:
    assert RECIPE.count(old) == 1, old
    return RECIPE.replace(old, new)


def line_of(text: str, part: str) -> str:
    return f"recipe.yaml:{text[: text.index(part)].count(chr(10)) + 1}"
