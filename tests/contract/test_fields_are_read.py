"""Every setting of a recipe is read by something: one that nothing reads is a promise that nothing keeps."""

import ast
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from tests.contract.sources import Source, sources

from tunesmith.recipe.base import Section
from tunesmith.recipe.schema import Recipe

# Under which other names the code holds a section, beside its key in the recipe.
ALSO_HELD_AS = {
    "recipe": {"loaded"},
    "evaluate": {"settings"},
    "filters": {"rule"},
    "guards": {"guard", "g"},
    "promote": {"target"},
    "tuning": {"quantization"},
}
# Settings that are only checked, each with the reason. One that gets a reader has to leave the list.
ONLY_CHECKED: dict[tuple[str, str], str] = {}


def leaves(section: type[Section] = Recipe, name: str = "recipe") -> Iterator[tuple[str, str]]:
    """Yield (key of the section, key) of every setting that is not a section itself and has a choice."""
    for key, field in section.model_fields.items():
        below = list(sections_in(field.annotation))
        for one in below:
            yield from leaves(one, key)
        # A tag such as `task: chat` has one possible value: there is nothing to read.
        if not below and not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1):
            yield name, key


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def reads(source: Source) -> Iterator[tuple[str, str]]:
    """Yield (what holds it, attribute) of everything that a file reads: `recipe.train.epochs` is (train, epochs)."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            held = node.value
            name = held.attr if isinstance(held, ast.Attribute) else held.id if isinstance(held, ast.Name) else ""
            yield name.lstrip("_"), node.attr


def is_read(setting: tuple[str, str], found: set[tuple[str, str]]) -> bool:
    section, key = setting
    return any((name, key) in found for name in {section, *ALSO_HELD_AS.get(section, ())})


CHECKS = ("recipe/schema.py", "recipe/data_source.py", "recipe/validation.py")
FOUND = {one for source in sources() if source.name not in CHECKS for one in reads(source)}
SETTINGS = sorted(set(leaves()))


def test_the_settings_are_found() -> None:
    some = {("train", "max_gradient_norm"), ("guards", "max_drop"), ("source", "revision"), ("recipe", "seed")}
    assert some <= set(SETTINGS)
    assert ("data", "task") not in SETTINGS
    assert len(SETTINGS) > 40


@pytest.mark.parametrize("setting", SETTINGS, ids=".".join)
def test_it_is_read(setting: tuple[str, str]) -> None:
    assert is_read(setting, FOUND) or setting in ONLY_CHECKED


def test_the_exceptions_are_still_exceptions() -> None:
    assert [setting for setting in ONLY_CHECKED if setting not in SETTINGS or is_read(setting, FOUND)] == []


def test_the_rule_sees_who_is_read() -> None:
    found = set(reads(Source("x.py", "a = self._data.prompt\nrecipe.train.epochs\nother.rank\ntrain.seed = 1\nf().by")))
    assert is_read(("data", "prompt"), found)
    assert is_read(("train", "epochs"), found)
    assert not is_read(("tuning", "rank"), found)
    assert not is_read(("train", "seed"), found)
    assert not is_read(("split", "by"), found)
