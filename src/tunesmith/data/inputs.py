"""Collect the inputs of the stage `prepare`, without the imports of the stage, to check quickly whether it is done."""

from typing import Any

from tunesmith.core.files import digest_file
from tunesmith.core.rundir import RunDir
from tunesmith.data.sources import digest_sources, sources_available
from tunesmith.fetch.reference import ModelFolder, resolve_base
from tunesmith.recipe.also import recipe_of_set
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.model import tokens_to_add
from tunesmith.recipe.schema import Recipe

FORMAT = 3  # increased when the meaning of prepared files changes, so that old ones are prepared again


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that determines the output of `prepare`; a missing source counts as unchanged."""
    return _row_inputs(recipe, run, resolve_base(run, recipe.model.base))


def set_inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return {name: everything that determines the rows of a further held-out set}; a missing source is unchanged."""
    sets = recipe.evaluate.also
    model = resolve_base(run, recipe.model.base) if sets else None
    return {
        entry.name: _row_inputs(recipe_of_set(recipe, entry), run.further_set(entry.name), model)
        for entry in sets
        if model
    }


def _row_inputs(recipe: Recipe, run: RunDir, model: ModelFolder) -> dict[str, Any]:
    # The start token of a decoder is in the configuration, not in the tokenizer.
    config = {"config": digest_file(model.root.path / "config.json")} if recipe.data.task == "seq2seq" else {}
    return {
        "format": FORMAT,
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "source": _source_digest(recipe, run),
        "tokenizer": model.root.tokenizer_digest(),
        **config,
        "chat_markup": [model.chat_markup, recipe.model.chat_markup],
        **({"added_tokens": tokens} if (tokens := [*model.added_tokens, *tokens_to_add(recipe.model)]) else {}),
    }


def _source_digest(recipe: Recipe, run: RunDir) -> str:
    manifest = run.manifest("prepare")
    commits = (manifest or {}).get("commits")
    if manifest is not None and not sources_available(
        all_sources(recipe.data), folder=run.recipe_folder, commits=commits
    ):
        return str(manifest["inputs"]["source"])
    return digest_sources(all_sources(recipe.data), folder=run.recipe_folder, commits=commits)
