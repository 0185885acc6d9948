"""The stage `promote`: if the verdict allows it, register the tuned model as a version and move the alias to it."""

import os
from dataclasses import replace
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, new_folder, read_json
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import ModelFolder, resolve_tuned
from tunesmith.promote.inputs import inputs
from tunesmith.promote.mirror import mirror
from tunesmith.recipe.schema import Promote, Recipe
from tunesmith.registry.gate import check_gate
from tunesmith.registry.store import Registry


def check_promotion(
    recipe: Recipe, run: RunDir, *, force: bool = False, reason: str | None = None
) -> tuple[Promote, dict[str, Any]]:
    """Check that the run may be promoted, as `promote` does; return the recipe's target and the stored verdict."""
    if recipe.promote is None:
        hint = "add `promote: {model: NAME}` to the recipe"
        raise RecipeError("has no `promote` section", where=str(run.resolved_recipe), hint=hint, code="missing-key")
    verdict: dict[str, Any] = read_json(run.verdict)
    check_gate(verdict, force=force, reason=reason)
    return recipe.promote, verdict


def promote(recipe: Recipe, run: RunDir, *, force: bool = False, reason: str | None = None) -> dict[str, Any]:
    """Add the tuned model to the registry and move the recipe's alias to it; return the manifest.

    Raises:
        VerdictRefused: the verdict does not allow it, and it is not forced.
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
        "data_digest": digest_of((run.manifest("prepare") or {}).get("files")),
        "verdict": verdict,
    }
    version = registry.add(target.model, tuned.path, facts=facts)
    before = registry.alias_target(target.model, target.alias)
    replaced = before if before != version.number else None
    if before != version.number:
        registry.move(target.model, target.alias, version.number, verdict=verdict, reason=reason, forced=force)
    note = "" if replaced is None else f"; it pointed at version {replaced}, with which this one was not compared"
    log(f"{target.model}@{target.alias} is now version {version.number}{note}")
    mirror(registry, version, target.alias)
    result: dict[str, Any] = {"model": target.model, "version": version.number, "alias": target.alias}
    result |= {"forced": force, "reason": reason, "replaced": replaced}
    with new_folder(run.stage("promote"), stage="promote", inputs=stage_inputs, **result):
        pass
    return run.manifest("promote") or {}


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
