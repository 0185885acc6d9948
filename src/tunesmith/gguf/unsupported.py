"""The error for a model that cannot be written as GGUF."""

from pathlib import Path

from tunesmith.core.errors import RecipeError


def unsupported(problem: str, where: Path) -> RecipeError:
    """Return the error for a property of a model that a GGUF file, or llama.cpp, has no place for."""
    hint = "use `--to merged`, which any program that reads transformers models can open"
    return RecipeError(problem, where=str(where), hint=hint, code="gguf-unsupported")
