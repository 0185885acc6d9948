"""Commented recipes to start from, one per task. `tunesmith init` writes them."""

from importlib import resources

from tunesmith.core.errors import RecipeError
from tunesmith.core.suggest import did_you_mean

TEMPLATES = ("chat", "completion", "seq2seq", "text")


def read_template(name: str) -> str:
    """Return the text of a template; raise RecipeError if there is none of that name."""
    if name not in TEMPLATES:
        message = f"there is no template `{name}`"
        raise RecipeError(message, code="unknown-template", hint=did_you_mean(name, TEMPLATES))
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
