"""What `prepare` follows from. Apart from the stage, so that asking whether it is done imports nothing heavy."""

from typing import Any

from tunesmith.core.files import digest_file
from tunesmith.core.rundir import RunDir
from tunesmith.data.sources import digest_sources, sources_available
from tunesmith.fetch.reference import resolve_base
from tunesmith.recipe.schema import Recipe

FORMAT = 3  # raised when the meaning of prepared files changes, so that old ones are made again


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return all that decides what `prepare` writes. If sources are gone, the rows prepared from them still count."""
    model = resolve_base(run, recipe.model.base)
    # What a decoder starts from is written in the configuration, and nowhere in the tokenizer.
    config = {"config": digest_file(model.root.path / "config.json")} if recipe.data.task == "seq2seq" else {}
    return {
        "format": FORMAT,
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "source": _source(recipe, run),
        "tokenizer": model.root.tokenizer_digest(),
        **config,
        "chat_markup": [model.chat_markup, recipe.model.chat_markup],
    }


def _source(recipe: Recipe, run: RunDir) -> str:
    done = run.manifest("prepare")
    commits = (done or {}).get("commits")
    if done is not None and not sources_available(recipe.data.source, folder=run.recipe_folder, commits=commits):
        return str(done["inputs"]["source"])
    return digest_sources(recipe.data.source, folder=run.recipe_folder, commits=commits)
