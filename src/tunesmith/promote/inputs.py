"""The inputs of the stage `promote`."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.store import Registry


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that the promotion depends on."""
    return {
        "promote": recipe.promote.model_dump(mode="json") if recipe.promote else None,
        "evaluate": digest_of((run.manifest("evaluate") or {}).get("files")),
        "registry": digest_of(str(Registry.default().root.resolve())),
    }
