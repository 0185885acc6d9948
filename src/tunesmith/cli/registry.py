"""The commands of the model registry: `promote`, `alias`, `rollback` and `models`."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter

from tunesmith.cli.app import MODELS, command
from tunesmith.cli.options import AsJson, Force, Reason
from tunesmith.cli.output import print_result
from tunesmith.core.errors import RecipeError


@command(MODELS)
def promote(
    run: Annotated[str, Parameter(help="The folder of an evaluated run.")],
    /,
    *,
    force: Force = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Register a run's tuned model, and point the recipe's promote.alias at it.

    Examples:
        tunesmith promote runs/my/ID
        tunesmith promote runs/my/ID --force --reason "the new format matters more"
    """
    from tunesmith.promote.commands import promote_run
    from tunesmith.registry.store import looks_like_reference

    if looks_like_reference(run) and not Path(run).exists():
        hint = f"to point an alias at it: tunesmith alias {quote(run)} production"
        raise RecipeError(f"`{run}` is a version of the registry, not the folder of a run", code="usage", hint=hint)
    _print_alias(promote_run(Path(run), force=force, reason=reason), as_json)


@command(MODELS)
def alias(
    version: Annotated[str, Parameter(help="NAME@3, or NAME@ALIAS for the version that another alias points at.")],
    alias: Annotated[str, Parameter(help="The alias, such as production.")],
    /,
    *,
    force: Force = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version of the registry, if the version's verdict allows it.

    Examples:
        tunesmith alias viggo@3 production
        tunesmith alias viggo@staging production --json
    """
    from tunesmith.promote.commands import move_alias

    _print_alias(move_alias(version, alias, force=force, reason=reason), as_json)


@command(MODELS)
def rollback(
    model: Annotated[str, Parameter(help="NAME@ALIAS, or NAME.")],
    /,
    *,
    alias: str = "staging",
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias back at the version before.

    Args:
        alias: The alias, if only NAME is given.

    Examples:
        tunesmith rollback viggo
        tunesmith rollback viggo@production --reason "slower answers"
    """
    from tunesmith.promote.commands import roll_back

    name, _, named = model.partition("@")
    _print_alias(roll_back(name, named or alias, reason=reason), as_json)


def _print_alias(result: dict[str, Any], as_json: bool) -> None:
    print_result(result, as_json, f"{result['model']}@{result['alias']} is version {result['version']}")


@command(MODELS)
def models(
    name: Annotated[str | None, Parameter(help="List this model's versions and the history of its aliases.")] = None,
    /,
    *,
    as_json: AsJson = False,
) -> None:
    """List the models of the registry, or the versions of one model.

    Examples:
        tunesmith models
        tunesmith models viggo --json
    """
    from tunesmith.promote.commands import list_models, list_versions

    result, text = list_models() if name is None else list_versions(name)
    print_result(result, as_json, text)
