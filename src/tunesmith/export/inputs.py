"""The inputs of the stage `export`. Imports no torch, so that checking whether the stage is done is fast."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.schema import Recipe


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that the exported files and their proofs depend on."""
    return {
        "export": [entry.model_dump(mode="json") for entry in recipe.export or ()],
        "trained": digest_of((run.manifest("train") or {}).get("files")),
        "evaluate": digest_of((run.manifest("evaluate") or {}).get("files")),
    }
