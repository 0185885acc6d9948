"""Commented recipes to start from, one for each task; `tunesmith init` writes them."""

import difflib
from importlib import resources

from tunesmith.core.errors import RecipeError

TEMPLATES = ("chat", "completion", "seq2seq", "text")


def read_template(name: str) -> str:
    """Return the recipe that a template holds; raise RecipeError where there is none of that name."""
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(TEMPLATES)}"
        raise RecipeError(f"there is no template `{name}`", hint=hint)
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
