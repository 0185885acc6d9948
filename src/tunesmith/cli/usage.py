"""Mistakes on the command line, as errors that say what the verb takes."""

from cyclopts.exceptions import CycloptsError

from tunesmith.core.errors import RecipeError


def usage_error(error: CycloptsError) -> RecipeError:
    """Return an error that names the mistake and the help that answers it."""
    error.verbose = False
    verb = " ".join(("tunesmith", *(error.command_chain or ())))
    return RecipeError(str(error), code="usage", hint=f"{verb} --help")
