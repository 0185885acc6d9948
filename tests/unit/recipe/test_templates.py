"""The recipes that `tunesmith init` writes: each is right as it stands, explains itself, and covers its task."""

from pathlib import Path

import pytest

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


def test_every_file_is_a_template_that_can_be_asked_for() -> None:
    files = Path(templates.__file__).parent.glob("*.yaml")
    assert {file.stem for file in files} == set(TEMPLATES)


def test_a_template_is_right_as_it_stands_and_after_naming_a_file(name: str, tmp_path: Path) -> None:
    recipe = load(read_template(name), tmp_path)
    assert recipe.data.task == name
    assert load(read_template(name), tmp_path, "data.source.file=mine.jsonl") != recipe


def test_what_is_commented_out_is_right_too(name: str, tmp_path: Path) -> None:
    """A user takes the # away: the promotion at the end must then be accepted."""
    before, mark, rest = read_template(name).partition("# promote:")
    opened = "".join(line[2:] for line in (mark + rest).splitlines(keepends=True))
    promote = load(before + opened, tmp_path).promote
    assert promote is not None
    assert promote.alias == "staging"


def test_a_template_explains_itself_in_short_lines(name: str) -> None:
    lines = read_template(name).splitlines()
    assert max(map(len, lines)) <= 92
    assert sum("#" in line for line in lines) > len(lines) / 2
    assert any("tunesmith plan" in line for line in lines)


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        read_template("complete")
    assert caught.value.hint == "did you mean `completion`?"
    with pytest.raises(RecipeError) as caught:
        read_template("../chat")
    assert caught.value.exit_code == 2
