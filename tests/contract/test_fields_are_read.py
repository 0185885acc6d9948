"""Some code reads every key of a recipe; a key that no code reads would have no effect."""

import ast
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from tests.contract.sources import Source, sources

from tunesmith.recipe.base import Section
from tunesmith.recipe.schema import Recipe

# Names of variables that hold a section, besides its key in the recipe.
VARIABLE_NAMES = {
    "also": {"entry", "data"},
    "recipe": {"loaded"},
    "evaluate": {"settings"},
    "export": {"entry"},
    "filters": {"rule"},
    "guards": {"guard", "g"},
    "lm_eval": {"entry", "task"},
    "promote": {"target", "recipe"},  # `Recipe.min_gain` is that of `promote`
    "test": {"source", "data"},  # the sections of valid and test are those of source
    "tuning": {"quantization"},
    "valid": {"source", "data"},
}
# Keys that are only validated, each with the reason. A key that gets a reader must leave the list.
ONLY_CHECKED: dict[tuple[str, str], str] = {}


def leaves(section: type[Section] = Recipe, name: str = "recipe") -> Iterator[tuple[str, str]]:
    """Yield (section, key) for each key that is not a section and allows more than one value."""
    for key, field in section.model_fields.items():
        subsections = list(sections_in(field.annotation))
        for subsection in subsections:
            yield from leaves(subsection, key)
        # A tag such as `task: chat` has one possible value, so that no code needs to read it.
        if not subsections and not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1):
            yield name, key


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def reads(source: Source) -> Iterator[tuple[str, str]]:
    """Yield (owner, attribute) for each attribute that a file reads: `recipe.train.epochs` is (train, epochs)."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            yield name.lstrip("_"), node.attr


def is_read(setting: tuple[str, str], attributes: set[tuple[str, str]]) -> bool:
    section, key = setting
    return any((name, key) in attributes for name in {section, *VARIABLE_NAMES.get(section, ())})


CHECKS = ("recipe/schema.py", "recipe/data_source.py", "recipe/sampling.py", "recipe/validation.py")
READS = {read for source in sources() if source.name not in CHECKS for read in reads(source)}
SETTINGS = sorted(set(leaves()))


def test_the_keys_of_the_recipe_are_found() -> None:
    some = {("train", "max_gradient_norm"), ("guards", "max_drop"), ("source", "revision"), ("recipe", "seed")}
    assert some <= set(SETTINGS)
    assert ("data", "task") not in SETTINGS
    assert len(SETTINGS) > 40


@pytest.mark.parametrize("setting", SETTINGS, ids=".".join)
def test_the_key_is_read(setting: tuple[str, str]) -> None:
    assert is_read(setting, READS) or setting in ONLY_CHECKED


def test_exceptions_are_unread_keys() -> None:
    assert [setting for setting in ONLY_CHECKED if setting not in SETTINGS or is_read(setting, READS)] == []


def test_the_rule_finds_counter_examples() -> None:
    attributes = set(
        reads(Source("x.py", "a = self._data.prompt\nrecipe.train.epochs\nother.rank\ntrain.seed = 1\nf().by"))
    )
    assert is_read(("data", "prompt"), attributes)
    assert is_read(("train", "epochs"), attributes)
    assert not is_read(("tuning", "rank"), attributes)
    assert not is_read(("train", "seed"), attributes)
    assert not is_read(("split", "by"), attributes)
