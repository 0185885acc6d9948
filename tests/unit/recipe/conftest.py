"""A recipe as text for the tests of this folder, and fixtures that load it or collect its mistakes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.recipe.load import Problem, RecipeProblems, load_recipe
from tunesmith.recipe.schema import Recipe

# The tests refer to its lines by number.
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
Problems = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write text to recipe.yaml and load it, with overrides."""

    def write_and_load(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides)

    return write_and_load


@pytest.fixture
def problems(load: Load) -> Problems:
    """Load a recipe that has mistakes, and return them."""

    def load_wrong(text: str, *overrides: str) -> tuple[Problem, ...]:
        with pytest.raises(RecipeProblems) as caught:
            load(text, *overrides)
        return caught.value.problems

    return load_wrong


def changed(old: str, new: str) -> str:
    """Return RECIPE with one piece of its text replaced."""
    assert RECIPE.count(old) == 1, old
    return RECIPE.replace(old, new)


def line_of(text: str, part: str) -> str:
    """Return the location of a part of a recipe, such as `recipe.yaml:3`."""
    return f"recipe.yaml:{text[: text.index(part)].count(chr(10)) + 1}"
