"""The incumbent: the version that a promotion would replace. Imports no torch, so that `plan` can check it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import DamagedFile, DataError, RecipeError, VerdictRefused
from tunesmith.core.records import Example
from tunesmith.evaluate.own_prompts import changes_base, own_prompts
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.store import Registry, Version


@dataclass(frozen=True, slots=True)
class IncumbentCheck:
    """The version that a promotion would replace, before training.

    Attributes:
        version: such as `viggo@3`.
        alias: such as `viggo@staging`.
        is_asked: whether it will answer the test rows; the run's base answers them anyway.
        problem: why it cannot be compared with the tuned model; None if it can.
        hint: what would help.
    """

    version: str
    alias: str
    is_asked: bool
    problem: str | None = None
    hint: str | None = None

    @property
    def warning(self) -> str | None:
        """The problem and its consequence; None if there is no problem."""
        if self.problem is None:
            return None
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.alias}: {self.version} {self.problem}{hint}; the tuned model will be promoted by --force only"


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
    is_tuned = version is not None and tuned is not None and version.facts.get("model_digest") == tuned
    return None if is_tuned else version


def check_incumbent(
    recipe: Recipe, base: ModelFolder, examples: Sequence[Example], folder: Path
) -> IncumbentCheck | None:
    """Check before training whether the version to replace can be compared; None if there is none.

    Args:
        base: the base of the run.
        examples: the test rows with the prompts of the run.
        folder: the folder of the recipe's sources.
    """
    version = find_incumbent(recipe, None)
    if version is None or recipe.promote is None:
        return None
    alias = f"{recipe.promote.model}@{recipe.promote.alias}"
    try:
        with refuse_incomparable(version):
            model = resolve(str(version), weights=False)  # evaluation downloads those of its base
            own_prompts(model, base, recipe, examples, folder)
    except VerdictRefused as refusal:
        return IncumbentCheck(str(version), alias, is_asked=False, problem=refusal.message, hint=refusal.hint)
    is_base = not changes_base(recipe) and model.digest() == base.digest()
    return IncumbentCheck(str(version), alias, is_asked=not is_base)


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
