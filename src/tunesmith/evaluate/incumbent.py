"""Compare the tuned model with the incumbent: the version of the registry that its promotion would replace.

The result is a verdict with the incumbent in the place of the base. It is kept
in the run, so that a repeated promotion does not ask again.
"""

from dataclasses import replace

from tunesmith.core.errors import DamagedFile, DataError, RecipeError, VerdictRefused
from tunesmith.core.files import MANIFEST, digest_of, read_json, seal_folder, write_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.compare import compare_models
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import write_scores
from tunesmith.evaluate.other_model import OtherOutputs, ask_other_model, is_base
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.store import Registry, Version
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics


def find_incumbent(recipe: Recipe, tuned: ModelFolder) -> Version | None:
    """Return the version that the recipe's alias points at.

    None if the recipe does not compare with it, if the alias is new, or if it points at the tuned model already.
    """
    target = recipe.promote
    if target is None or "incumbent" not in target.against:
        return None
    version = Registry.default().alias_version(target.model, target.alias)
    return None if version is None or version.facts.get("model_digest") == tuned.digest() else version


def compare_with_incumbent(recipe: Recipe, run: RunDir, version: Version) -> Verdict:
    """Return the verdict with a version in the place of the base: the stored one, or that of its answers now.

    Raises:
        VerdictRefused: the version cannot answer the rows.
    """
    manifest = run.incumbent(str(version)) / MANIFEST
    if manifest.exists() and read_json(manifest)["inputs"] == _inputs(run, version):
        return read_verdict(manifest.parent / "verdict.json")
    if current_group().is_distributed:  # `promote` runs on rank 0 alone
        raise VerdictRefused(
            "became the version to replace after this evaluation",
            where=str(version),
            code="not-comparable",
            hint=f"compare and promote in one process: tunesmith promote {run}",
        )
    return judge_incumbent(recipe, run, version, ask_incumbent(recipe, run, version))


def ask_incumbent(recipe: Recipe, run: RunDir, version: Version) -> OtherOutputs | None:
    """Let a version answer the run's test rows; return None for the run's base. All ranks call this.

    Raises:
        VerdictRefused: the version cannot answer the rows.
    """
    try:
        model = resolve(str(version))
        if is_base(model, recipe, run):
            return None
        return ask_other_model("incumbent", model, recipe, run, run.incumbent(str(version)))
    except (RecipeError, DataError, DamagedFile) as error:
        reason = f"{error.where}: {error.message}" if error.where else error.message
        raise VerdictRefused(
            f"cannot be compared with the tuned model: {reason}",
            where=str(version),
            code="not-comparable",
            hint=error.hint,
        ) from error


def judge_incumbent(recipe: Recipe, run: RunDir, version: Version, asked: OtherOutputs | None) -> Verdict:
    """Score the incumbent's outputs, compare the evaluated tuned model with it, and store the verdict in the run.

    Args:
        asked: the result of `ask_incumbent`.
    """
    folder = run.incumbent(str(version))
    folder.mkdir(parents=True, exist_ok=True)
    tuned, own = list(read_jsonl(run.evaluation("tuned") / "scores.jsonl")), read_verdict(run.verdict)
    compared = recipe if asked is None else asked.recipe
    scorer = Scorer(answer_metrics(compared.evaluate.metrics), recipe, run, stage="evaluate")
    if asked is None:
        scores, health = list(read_jsonl(run.evaluation("base") / "scores.jsonl")), own.health["base"]
    else:
        examples, _ = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
        scores, health = write_scores(folder, examples, asked.outputs, scorer), response_stats(asked.outputs[0])
    verdict = compare_models(
        compared,
        scores,
        tuned,
        groups=[line["group"] for line in tuned],
        min_gain=0.0,
        lower_is_better=scorer.lower_is_better,
    )
    left_out = [metric for metric in likelihood_metrics(recipe.evaluate.metrics) if metric not in verdict.metrics]
    reasons = [f"{metric} was not compared: the models read different tokens" for metric in left_out]
    verdict = replace(
        verdict,
        reasons=(*verdict.reasons, *reasons),
        health={"base": health, "tuned": own.health["tuned"]},
        digests={**own.digests, **(asked.digests if asked else {})},
        conditions=own.conditions,
    )
    write_json(folder / "verdict.json", verdict.to_json())
    seal_folder(folder, inputs=_inputs(run, version))
    return verdict


def _inputs(run: RunDir, version: Version) -> dict[str, str]:
    """Return everything that the verdict depends on."""
    return {"evaluate": digest_of((run.manifest("evaluate") or {}).get("files")), "version": version.digest}
