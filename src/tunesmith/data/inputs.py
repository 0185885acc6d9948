"""What `prepare` follows from. Apart from the stage, so that asking whether it is done imports nothing heavy."""

from typing import Any

from tunesmith.core.rundir import RunDir
from tunesmith.data.sources import digest_source
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.schema import Recipe

FORMAT = 1  # raised when the meaning of prepared files changes, so that old ones are made again


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides what `prepare` writes."""
    model = resolve(recipe.model.base, relative_to=run.origin)
    return {
        "format": FORMAT,
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "source": digest_source(recipe.data.source, folder=run.origin),
        "tokenizer": model.root.tokenizer_digest(),
        "chat_markup": [model.chat_markup, recipe.model.chat_markup],
    }
