"""The settings of a model's recipe that `generate` and `chat` need, as its run or the registry recorded them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.load import load_recipe
from tunesmith.registry.store import Registry

DEFAULT_MAX_NEW_TOKENS = 256
"""The limit of an answer of a model without a recorded recipe."""


@dataclass(frozen=True, slots=True)
class RecordedOptions:
    """The settings of a recipe that the model's own folder does not have.

    Attributes:
        max_new_tokens: the limit of an answer in the evaluation.
        rename: the columns that its sources rename, as {column of the source: column of the recipe}.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    rename: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with its columns renamed as in the recipe, except for columns that have the new name already."""
        names = {old: new for old, new in self.rename.items() if new not in row or new in self.rename}
        return {names.get(column, column): value for column, value in row.items()}


def recorded_options(model: ModelFolder) -> RecordedOptions:
    """Return the recorded settings of a model; the defaults if it is neither from a run nor from the registry.

    Raises:
        RecipeError: the recipe of the run cannot be read.
    """
    recipe = recorded_recipe(model)
    data = recipe.get("data") or {}
    given = [data.get(key) for key in ("source", "valid", "test")]
    sources = [source for value in given for source in (value if isinstance(value, list) else [value])]
    rename = {
        old: new for source in sources if isinstance(source, dict) for old, new in (source.get("rename") or {}).items()
    }
    limit = (recipe.get("evaluate") or {}).get("max_new_tokens")
    return RecordedOptions(limit or DEFAULT_MAX_NEW_TOKENS, rename)


def recorded_recipe(model: ModelFolder) -> dict[str, Any]:
    """Return the recipe of a model as JSON, as its run or the registry recorded it; empty if neither has it.

    Raises:
        RecipeError: the recipe of the run cannot be read.
    """
    if model.pin is not None and model.pin.kind == "run":
        return load_recipe(RunDir(model.pin.at).resolved_recipe).model_dump(mode="json")
    if model.pin is not None and model.pin.kind == "registry":
        return dict(Registry.default().resolve(model.pin.at).facts.get("recipe") or {})
    return {}
