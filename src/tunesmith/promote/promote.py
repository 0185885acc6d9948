"""The stage `promote`: if the verdict allows it, register the tuned model as a version and move the alias to it."""

import os
from dataclasses import replace
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError, VerdictRefused
from tunesmith.core.files import new_folder, read_json
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import ModelFolder, resolve_tuned
from tunesmith.promote.inputs import inputs
from tunesmith.promote.mirror import mirror
from tunesmith.recipe.promotion import Promote
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.gate import check_gate
from tunesmith.registry.store import Registry, Version


def check_promotion(
    recipe: Recipe, run: RunDir, *, force: bool = False, reason: str | None = None
) -> tuple[Promote, dict[str, Any]]:
    """Check that the verdict on the base allows promotion; return the recipe's target and the stored verdict.

    Raises:
        VerdictRefused: the verdict does not allow it, and it is not forced.
        RecipeError: the recipe has no `promote` section.
    """
    if recipe.promote is None:
        hint = "add `promote: {model: NAME}` to the recipe"
        raise RecipeError("has no `promote` section", where=str(run.resolved_recipe), hint=hint, code="missing-key")
    verdict: dict[str, Any] = read_json(run.verdict)
    if "base" in recipe.promote.against or force or reason:
        check_gate(verdict, force=force, reason=reason)
    return recipe.promote, verdict


def promote(recipe: Recipe, run: RunDir, *, force: bool = False, reason: str | None = None) -> dict[str, Any]:
    """Add the tuned model to the registry and move the recipe's alias to it; return the manifest.

    The tuned model must be better than the version that the alias points at, too. If another process moves the alias
    meanwhile, the comparison is repeated with the new version. A refusal is logged in the registry.

    Raises:
        VerdictRefused: a verdict does not allow it, and it is not forced.
        RecipeError: the recipe has no `promote` section.
    """
    target, verdict = check_promotion(recipe, run, force=force, reason=reason)
    stage_inputs = inputs(recipe, run)
    tuned = resolve_tuned(run)
    registry = Registry.default()
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        **_base_facts(tuned, recipe, registry),
        "model_digest": tuned.digest(),
        "data_digest": run.data_digest,
        "rows": run.row_counts,
        "trained_with": run.package_versions,
        "verdict": verdict,
    }
    version, replaced, gain = _register(recipe, run, tuned, registry, facts, force=force, reason=reason)
    note = ""
    if replaced is not None and gain is None:
        note = f"; it pointed at version {replaced}, with which this one was not compared"
    log(f"{target.model}@{target.alias} is now version {version.number}{note}")
    mirror(registry, version, target.alias)
    result: dict[str, Any] = {"model": target.model, "version": version.number, "alias": target.alias}
    result |= {"forced": force, "reason": reason, "replaced": replaced, "incumbent": gain}
    with new_folder(run.stage("promote"), stage="promote", inputs=stage_inputs, **result):
        pass
    return run.manifest("promote") or {}


def _register(
    recipe: Recipe,
    run: RunDir,
    tuned: ModelFolder,
    registry: Registry,
    facts: dict[str, Any],
    *,
    force: bool,
    reason: str | None,
) -> tuple[Version, int | None, dict[str, Any] | None]:
    """Add the tuned model and move the alias to it; return the version, the one it replaced, and the verdict on both.

    A model that the alias points at already is not added again. The alias is looked up once: the comparison, its
    refusal and the move are about the same version, and if it is replaced meanwhile, all begin again.
    """
    target = recipe.promote
    assert target is not None
    while True:
        current = registry.alias_version(target.model, target.alias)
        if current is not None and current.facts.get("model_digest") == facts["model_digest"] and not force:
            return current, None, None
        before = None if current is None else current.number
        try:
            gain = None
            if current is not None and "incumbent" in target.against and not force:
                gain = _gain_over(current, target, recipe, run, registry)
            version = registry.add(target.model, tuned.path, facts=facts)
            if before == version.number:
                return version, None, gain
            registry.move(
                target.model, target.alias, version.number, verdict=facts["verdict"], reason=reason, forced=force,
                expected=before,
            )  # fmt: skip
        except TunesmithError as error:
            if error.code != "alias-moved":
                raise
            log(f"{error.where}: {error.message}; comparing with its new version")
        else:
            return version, before, gain


def _gain_over(incumbent: Version, target: Promote, recipe: Recipe, run: RunDir, registry: Registry) -> dict[str, Any]:
    """Return the verdict on the tuned model against the version that it would replace.

    Raises:
        VerdictRefused: the tuned model is not better, or the two cannot be compared. The registry logs it.
        TunesmithError: it is not better, but the alias does not point at this version any more.
    """
    from tunesmith.evaluate.incumbent_verdict import compare_with_incumbent  # imports torch

    name, alias = target.model, target.alias
    stored: dict[str, Any] | None = None
    try:
        stored = compare_with_incumbent(recipe, run, incumbent).to_json()
        check_gate(stored, force=False, reason=None, where=f"{name}@{alias} (version {incumbent.number})")
    except VerdictRefused as refused:
        reason = f"{run.path.name}: {refused.message}"
        registry.log_refusal(name, alias, incumbent.number, verdict=stored, reason=reason)
        raise
    return stored


def _base_facts(tuned: ModelFolder, recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """Return the registry's record of an adapter's base: {base, base_digest, base_pins}.

    A path is recorded relative to the registry, in case both are moved together, and as an absolute path.
    """
    if tuned.base is None or tuned.base.pin is None:
        return {"base": recipe.model.base, "base_digest": None}
    pin = tuned.base.pin
    absolute = replace(pin, at=os.path.realpath(pin.at)) if pin.is_path else pin
    pins = dict.fromkeys([pin.relative_to_folder(registry.root), absolute])
    return {
        "base": recipe.model.base if pin.is_path else str(pin),
        "base_digest": tuned.base.digest(),
        "base_pins": [base_pin.to_json() for base_pin in pins],
    }
