"""The registry's commands: promote a run, move an alias, roll back, list models and versions."""

from pathlib import Path
from shlex import quote
from typing import Any

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict_reader import parse_verdict
from tunesmith.promote.mirror import mirror
from tunesmith.promote.promote import check_promotion, promote
from tunesmith.recipe.load import load_recipe
from tunesmith.registry.gate import check_gate
from tunesmith.registry.store import Registry
from tunesmith.scoring.verdict import describe_verdict


def promote_run(folder: Path, *, force: bool, reason: str | None) -> dict[str, Any]:
    """Promote the tuned model of an evaluated run; return the stage's manifest.

    Raises:
        VerdictRefused: the verdict does not allow it, and it is not forced.
        RecipeError: the run has not been evaluated, or its recipe has no `promote` section.
    """
    run = RunDir.existing(folder)
    if run.manifest("evaluate") is None:
        hint = f"tunesmith evaluate {quote(str(folder))}"
        raise RecipeError("has not been evaluated", where=str(folder), code="not-evaluated", hint=hint)
    recipe = load_recipe(run.resolved_recipe)
    check_promotion(recipe, run, force=force, reason=reason)
    with exclusive_lock(run.lock):
        return promote(recipe, run, force=force, reason=reason)


def move_alias(reference: str, alias: str, *, force: bool, reason: str | None) -> dict[str, Any]:
    """Point an alias at a registered version, if the verdict stored with the version allows it.

    Raises:
        VerdictRefused: the verdict does not allow it, and it is not forced.
        RecipeError: there is no such version, or a name is invalid.
    """
    registry = Registry.default()
    version = registry.resolve(reference)
    verdict = version.facts.get("verdict")
    check_gate(verdict, force=force, reason=reason)
    registry.verify(version)
    registry.move(version.model, alias, version.number, verdict=verdict, reason=reason, forced=force)
    mirror(registry, version, alias)
    return {"model": version.model, "alias": alias, "version": version.number}


def roll_back(name: str, alias: str, *, reason: str | None) -> dict[str, Any]:
    """Point an alias at the version before its current one."""
    registry = Registry.default()
    version = registry.rollback(name, alias, reason=reason)
    mirror(registry, version, alias)
    return {"model": name, "alias": alias, "version": version.number}


def list_models() -> tuple[list[dict[str, Any]], str]:
    """Return all models with their aliases: a list for JSON output, and the text to print."""
    models: list[dict[str, Any]] = [
        {"model": m.name, "aliases": dict(m.aliases), "versions": len(m.versions)} for m in Registry.default().models()
    ]
    lines = []
    for m in models:
        aliases = "  ".join(f"{alias} -> {number}" for alias, number in m["aliases"].items())
        lines.append(f"{m['model']:24} {m['versions']:>3} version(s)  {aliases}")
    return models, "\n".join(lines) or "no models yet; `tunesmith run` promotes a model that is better than its base"


def list_versions(name: str) -> tuple[dict[str, Any], str]:
    """Return a model's versions and the history of its aliases: a dictionary for JSON output, and the text to print."""
    registry = Registry.default()
    versions = [
        {"version": v.number, "added": v.added, "verdict": v.facts.get("verdict"), "base": v.facts.get("base")}
        for v in registry.versions(name)
    ]
    moves = [
        {"time": m.time, "user": m.user, "kind": m.kind, "alias": m.alias, "from": m.before, "to": m.after,
         "forced": m.forced, "reason": m.reason}
        for m in registry.history(name)
    ]  # fmt: skip
    lines = [f"{name}@{v['version']}  {v['added']}  {_primary_text(v['verdict'])}  base {v['base']}" for v in versions]
    for m in moves:
        reason = f"  forced: {m['reason']}" if m["forced"] else f"  {m['reason']}" if m["reason"] else ""
        change = f"{m['from'] or '-'} -> {m['to']}" if m["kind"] != "refusal" else f"stays at {m['to']}"
        lines.append(f"  {m['time']}  {m['user']}: {m['kind']} {m['alias']} {change}{reason}")
    return {"model": name, "versions": versions, "moves": moves}, "\n".join(lines)


def _primary_text(stored: Any) -> str:
    if stored is None:
        return "no verdict"
    try:
        primary = parse_verdict(stored).primary
    except DamagedFile:  # the version was promoted by force
        return "damaged verdict"
    interval = f"[{primary.low:+.4g}, {primary.high:+.4g}]"
    return f"{describe_verdict(primary)}: {primary.metric} {primary.base:.4g} -> {primary.tuned:.4g} {interval}"
