"""Comparison of settings with records that this or another version of tunesmith wrote."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.support.earlier_versions import with_value, without
from tests.support.tiny import recipe

from tunesmith.recipe.base import Section
from tunesmith.recipe.changes import changed_keys
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe

CHANGES = [
    "data.source=[{file: rows.jsonl, weight: 2}, {hub: a/b, name: other}, {generated: shop-sql}]",
    "data.filters=[{column: question, min_characters: 2}]", "train.valid_metrics=[chrf]", "promote={model: x}",
    "evaluate.guards=[{metric: exact_match, max_drop: 0.1}]", "launch={on: slurm, exports: {A: b}}",
]  # fmt: skip


@pytest.fixture
def loaded(tmp_path: Path, tokenizer_folder: Path) -> Recipe:
    return load_recipe(recipe(tmp_path, tokenizer_folder), CHANGES)


def changed(loaded: Recipe, change: Callable[[dict[str, Any]], None]) -> set[str]:
    """Return the keys that differ from a record of the recipe after a change to the record."""
    recorded = loaded.model_dump(mode="json")
    change(recorded)
    return changed_keys(recorded, loaded.model_dump(mode="json"), loaded)


def optional_keys(section: Section, path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield (key, whether its value is the default) of all keys with a default, except those inside lists."""
    for name, field in type(section).model_fields.items():
        key, value = f"{path}.{name}" if path else name, getattr(section, name)
        if not field.is_required():
            yield key, value == field.default
        if isinstance(value, Section):
            yield from optional_keys(value, key)


def test_keys_missing_in_a_record_have_their_defaults(loaded: Recipe) -> None:
    keys = list(optional_keys(loaded))
    assert len(keys) > 50
    for key, is_default in keys:
        section = loaded.model_dump(mode="json")
        without(key)(section)
        assert section != loaded.model_dump(mode="json")
        different = changed(loaded, without(key))
        assert (not different) == is_default, key
        assert all(other == key or other.startswith(f"{key}.") for other in different)


@pytest.mark.parametrize("key", ["data.source.name", "data.source.rename", "data.filters.max", "data.source.quote"])
def test_sections_in_lists_are_compared_key_by_key(loaded: Recipe, key: str) -> None:
    section = key.rpartition(".")[0]
    assert changed(loaded, without(key)) == ({section} if key == "data.source.name" else set()), (
        "one source has a name, which is not the default"
    )
    assert changed(loaded, with_value(key, "other")) == {section}
    assert changed(loaded, lambda settings: settings["data"]["source"].pop()) == {"data.source"}


def test_required_and_removed_keys_count_as_changes(loaded: Recipe) -> None:
    assert changed(loaded, without("train.learning_rate")) == {"train.learning_rate"}
    assert changed(loaded, with_value("train.gone", 1)) == {"train.gone"}
    assert changed(loaded, with_value("train.gone", None)) == set(), "a removed key that was not set"


def test_changed_default_counts_as_a_change(loaded: Recipe) -> None:
    assert changed(loaded, with_value("train.beta1", 0.8)) == {"train.beta1"}
    assert changed(loaded, with_value("tuning.method", "full")) == {"tuning.method"}
    assert changed(loaded, with_value("launch.on", "local")) == {"launch.on"}


def test_keys_left_out_of_the_wanted_settings_are_not_compared(loaded: Recipe) -> None:
    wanted = {"train": {"epochs": loaded.train.epochs}, "base": "digest"}
    recorded = deepcopy(wanted)
    recorded["train"] |= {"packing": "never"}  # type: ignore[operator]
    assert changed_keys(recorded, wanted, loaded) == set()
    assert changed_keys({**recorded, "base": "other"}, wanted, loaded) == {"base"}
    assert changed_keys(None, wanted, loaded) == {""}
