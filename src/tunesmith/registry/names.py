"""Rules for the names of models and aliases, and for references: `NAME@ALIAS` and `NAME@3`."""

import re

from tunesmith.core.errors import RecipeError

# Names become folders, so this expression must keep path tricks such as `..` and `/` out of the file system.
# ASCII only, because look-alikes from other scripts could pass for a known model. Lower case only, because some file
# systems ignore case.
_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,63}(?<!\.)")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_RULE = "1 to 64 of a-z 0-9 . _ -, with a letter or digit first, no `..`, and no dot at the end"


def check_name(name: str) -> None:
    """Raise RecipeError unless `name` is a valid name of a model."""
    if not _NAME.fullmatch(name):
        raise RecipeError(f"{_shorten(name)} is not a valid model name", hint=f"use {_RULE}", code="bad-name")


def check_alias(alias: str) -> None:
    """Raise RecipeError unless `alias` is a valid alias: a valid name that does not look like a version number."""
    if not _NAME.fullmatch(alias) or alias.isdigit():
        hint = f"use {_RULE}, and not only digits"
        raise RecipeError(f"{_shorten(alias)} is not a valid alias", hint=hint, code="bad-name")


def parse_reference(reference: str) -> tuple[str, str | int]:
    """Split `NAME@ALIAS` into (name, alias), or `NAME@3` into (name, number).

    Raises:
        RecipeError: the reference has neither form, or a name in it is invalid.
    """
    name, at, target = reference.partition("@")
    if not at:
        hint = "write NAME@ALIAS or NAME@3"
        raise RecipeError(f"{_shorten(reference)} is not a reference to a version", hint=hint, code="bad-reference")
    check_name(name)
    if _NUMBER.fullmatch(target):
        return name, int(target)
    check_alias(target)
    return name, target


def looks_like_reference(text: str) -> bool:
    """Return whether a text has the form of a registry reference; the version need not exist."""
    try:
        parse_reference(text)
    except RecipeError:
        return False
    return True


def _shorten(text: str) -> str:
    return f"{text[:80]!a}" + ("..." if len(text) > 80 else "")
