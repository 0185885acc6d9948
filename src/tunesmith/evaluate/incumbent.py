"""The incumbent: the version that a promotion would replace. Imports no torch, so that `plan` can check it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.core.errors import DamagedFile, DataError, RecipeError, VerdictRefused
from tunesmith.core.records import Example
from tunesmith.evaluate.own_prompts import own_prompts
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.store import Registry, Version


def find_incumbent(recipe: Recipe, tuned: str | None) -> Version | None:
    """Return the version that the recipe's alias points at.

    None if the recipe does not compare with it, if the alias is new, or if it points at the tuned model already.

    Args:
        tuned: the digest of the tuned model; None before training.
    """
    target = recipe.promote
    if target is None or "incumbent" not in target.against:
        return None
    version = Registry.default().alias_version(target.model, target.alias)
    return None if version is None or version.facts.get("model_digest") == tuned else version


def check_incumbent(
    recipe: Recipe, version: Version, base: ModelFolder, examples: Sequence[Example], folder: Path
) -> None:
    """Check before training whether a version can be asked about the test rows.

    Args:
        base, examples, folder: as in `own_prompts`.

    Raises:
        VerdictRefused: it cannot.
    """
    with refuse_incomparable(version):
        own_prompts(resolve(str(version)), base, recipe, examples, folder)


@contextmanager
def refuse_incomparable(version: Version) -> Iterator[None]:
    """Raise VerdictRefused with the reason if a version cannot be opened, asked or compared."""
    try:
        yield
    except (RecipeError, DataError, DamagedFile) as error:
        reason = f"{error.where}: {error.message}" if error.where else error.message
        raise VerdictRefused(
            f"cannot be compared with the tuned model: {reason}",
            where=str(version),
            code="not-comparable",
            hint=error.hint,
        ) from error
