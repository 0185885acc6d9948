"""llama.cpp's program `llama-quantize`. Imports no torch, so that options can be checked quickly."""

import shutil
from pathlib import Path

from tunesmith.core.errors import RecipeError


def find_quantizer(program: Path | str) -> str:
    """Return the path of `llama-quantize`, given as a path or as a name on the PATH; raise RecipeError without it."""
    executable = shutil.which(program)
    if executable is None:
        hint = "name the llama-quantize of a build of llama.cpp"
        raise RecipeError("is not a program", where=str(program), hint=hint, code="not-found")
    return executable
