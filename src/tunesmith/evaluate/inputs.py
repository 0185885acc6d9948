"""The inputs of the stage `evaluate`. Imports no torch, so that checking whether the stage is done is fast."""

from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.rundir import RunDir
from tunesmith.data.inputs import set_inputs
from tunesmith.evaluate.harness_process import task_inputs
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.recipe.schema import Recipe


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return everything that the verdict depends on."""
    return {
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "min_gain": recipe.min_gain,
        "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
        "train": digest_of((run.manifest("train") or {}).get("files")),
        **(_replicates(recipe, run) if recipe.replicates else {}),
        **({"also": digest_of(sets)} if (sets := set_inputs(recipe, run)) else {}),
        **task_inputs(recipe, run),
        **scoring_inputs(recipe.evaluate.all_metrics, recipe, run),
    }


def _replicates(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the seeds and the digest of their models; fewer seeds than before leave the models as they are."""
    manifest = run.manifest("replicate") or {}
    return {"seeds": list(recipe.further_seeds), "replicate": digest_of(manifest.get("files"))}
