"""The templates of `tunesmith init`: each is a valid recipe of its task, with comments."""

from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.recipe import templates
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.templates import TEMPLATES, read_template


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(text: str, folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def test_every_file_is_a_listed_template() -> None:
    files = Path(templates.__file__).parent.glob("*.yaml")
    assert {file.stem for file in files} == set(TEMPLATES)


def test_template_is_valid_as_written_and_with_another_file(name: str, tmp_path: Path) -> None:
    recipe = load(read_template(name), tmp_path)
    assert recipe.data.task == name
    assert load(read_template(name), tmp_path, "data.source.file=mine.jsonl") != recipe


def test_commented_promotion_is_valid(name: str, tmp_path: Path) -> None:
    """A user removes the `#` before the section at the end."""
    before, mark, rest = read_template(name).partition("# promote:")
    opened = "".join(line[2:] for line in (mark + rest).splitlines(keepends=True))
    promote = load(before + opened, tmp_path).promote
    assert promote is not None
    assert promote.alias == "staging"


def test_template_has_comments_in_short_lines(name: str) -> None:
    lines = read_template(name).splitlines()
    assert max(map(len, lines)) <= 92
    assert sum("#" in line for line in lines) > len(lines) / 2
    assert any("tunesmith plan" in line for line in lines)


def test_unknown_template_suggests_the_nearest() -> None:
    with raises(RecipeError, "unknown-template", "`complete`", "`completion`"):
        read_template("complete")
    with raises(RecipeError, "unknown-template", "`../chat`"):
        read_template("../chat")
