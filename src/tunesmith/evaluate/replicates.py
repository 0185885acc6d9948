"""The models of a run's further seeds, and the scores of all seeds together."""

from collections.abc import Mapping

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import check_folder
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir, seed_name
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.replicates import mean_rows
from tunesmith.scoring.row_scores import Scores


def replicate_models(recipe: Recipe, run: RunDir) -> dict[str, ModelFolder]:
    """Return the model of each further seed at its best step, by name.

    Raises:
        DamagedFile: a checkpoint is missing or damaged.
    """
    models = {}
    for seed in recipe.further_seeds:
        folder = run.replicate(seed)
        manifest = folder.manifest("train")
        if manifest is None:
            raise DamagedFile("was trained, but its manifest is gone", where=str(folder))
        checkpoint = folder.checkpoint(manifest["best_step"])
        check_folder(checkpoint)
        models[seed_name(seed)] = resolve(str(checkpoint / "model"), relative_to=run.recipe_folder)
    return models


def tuned_scores(recipe: Recipe, scores: Mapping[str, Scores]) -> tuple[Scores, dict[int, Scores]]:
    """Return the scores of the tuned model, and those of all seeds if several were trained; then the first are means.

    Args:
        scores: the lines of `scores.jsonl` of each model, by name.
    """
    if not recipe.further_seeds:
        return scores["tuned"], {}
    by_seed = {recipe.seed: scores["tuned"], **{seed: scores[seed_name(seed)] for seed in recipe.further_seeds}}
    return mean_rows(list(by_seed.values())), by_seed


def read_tuned_scores(recipe: Recipe, run: RunDir) -> tuple[Scores, dict[int, Scores]]:
    """Return the result of `tuned_scores` from the files of an evaluated run."""
    names = ("tuned", *map(seed_name, recipe.further_seeds))
    return tuned_scores(recipe, {name: list(read_jsonl(run.evaluation(name) / "scores.jsonl")) for name in names})
