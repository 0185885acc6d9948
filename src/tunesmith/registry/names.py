"""Names of models and aliases, and the references made of them: `NAME@ALIAS` and `NAME@3`."""

import re

from tunesmith.core.errors import RecipeError

# Names become folders, so this one expression is all that stands between a name and the file system.
# ASCII only: look-alikes of other scripts cannot pass for a known model. Lower case only: no clash where case is lost.
_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,63}(?<!\.)")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_RULE = "1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit, without `..` and not ending in a dot"


def check_name(name: str) -> None:
    """Raise RecipeError unless `name` may name a model."""
    if not _NAME.fullmatch(name):
        raise RecipeError(f"{_shown(name)} cannot name a model", hint=f"use {_RULE}")


def check_alias(alias: str) -> None:
    """Raise RecipeError unless `alias` may name an alias: a name that cannot be taken for a version."""
    if not _NAME.fullmatch(alias) or alias.isdigit():
        raise RecipeError(f"{_shown(alias)} cannot name an alias", hint=f"use {_RULE}, and not digits alone")


def parse_reference(reference: str) -> tuple[str, str | int]:
    """Return (name, alias) of `NAME@ALIAS` and (name, number) of `NAME@3`.

    Raises:
        RecipeError: it is neither.
    """
    name, at, target = reference.partition("@")
    if not at:
        raise RecipeError(f"{_shown(reference)} names no version", hint="write NAME@ALIAS or NAME@3")
    check_name(name)
    if _NUMBER.fullmatch(target):
        return name, int(target)
    check_alias(target)
    return name, target


def looks_like_reference(text: str) -> bool:
    """Say whether a text is written like a reference to the registry, whether or not there is such a version."""
    try:
        parse_reference(text)
    except RecipeError:
        return False
    return True


def _shown(text: str) -> str:
    return f"{text[:80]!a}" + ("..." if len(text) > 80 else "")
