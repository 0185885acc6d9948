"""Errors for wrong use of the command line, with hints that name the right arguments or the intended command."""

import inspect
from collections.abc import Callable
from typing import Any

from cyclopts import exceptions

from tunesmith.core.errors import RecipeError

# Names of commands in other tools and in former versions.
_OTHER_COMMANDS = {
    "finetune": "run", "fine-tune": "run", "sft": "run", "preprocess": "prepare", "eval": "evaluate",
    "test": "evaluate", "inference": "generate", "predict": "generate", "ask": "generate", "list": "models",
    "dry-run": "plan", "validate": "plan", "check": "plan", "ladder": "sweep", "new": "init", "inspect": "show",
    "info": "status",
}  # fmt: skip
# Options of former versions, with the command if another command still has the option.
_FORMER_OPTIONS = {
    "--bar": "the option is now --threshold",
    "--rung": "the option is now --trial",
    "generate --rows": "the option is now --file",
    "--alias": "to point an alias at a version of the registry: tunesmith alias NAME@VERSION ALIAS",
}
# Hints for commands that often get an extra argument.
_EXTRA_ARGUMENT = {
    "generate": "put the text of the prompt in quotes after --prompt",
    "chat": "start the chat, then type",
    "score": "score one file at a time",
    "promote": _FORMER_OPTIONS["--alias"],
}


def usage_error(error: exceptions.CycloptsError) -> RecipeError:
    """Return the error for a command line that cyclopts refuses."""
    error.verbose = False
    command = " ".join(error.command_chain or ())
    help_command = f"tunesmith {command} --help" if command else "tunesmith --help"
    arguments = _positional_names(error.target)
    message, hint = str(error), help_command
    if isinstance(error, exceptions.UnusedCliTokensError) and error.target:
        extra = " ".join(f"`{token}`" for token in error.unused_tokens or ())
        message = f"`{command}` takes {' '.join(arguments) or 'no arguments'}; unexpected: {extra}"
        hint = _EXTRA_ARGUMENT.get(command, help_command)
    elif isinstance(error, exceptions.MissingArgumentError) and error.argument and not error.tokens_so_far:
        if not error.keyword and (name := _argument_name(error.argument.name)) in arguments:
            message, hint = f"{name} is missing", f"tunesmith {command} {' '.join(arguments)}; see {help_command}"
    elif isinstance(error, exceptions.UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        if _argument_name(option) in arguments:
            hint = f"{_argument_name(option)} has no dashes: tunesmith {command} {' '.join(arguments)}"
        else:
            former = _FORMER_OPTIONS.get(option) or _FORMER_OPTIONS.get(f"{command} {option}")
            hint = former or _recipe_key_hint(option) or help_command
    elif isinstance(error, exceptions.UnknownCommandError):
        word = next((token for token in error.unused_tokens or () if token in _OTHER_COMMANDS), None)
        hint = f"did you mean `tunesmith {_OTHER_COMMANDS[word]}`?" if word else help_command
    return RecipeError(message, code="usage", hint=hint)


def _argument_name(name: str) -> str:
    return name.lstrip("-").upper().replace("-", "_")


def _positional_names(target: Callable[..., Any] | None) -> list[str]:
    """Return the names of a command's positional arguments, as its help shows them."""
    parameters = inspect.signature(target).parameters.values() if target else ()
    names = [parameter.name.upper() for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
    more = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL]
    return [*names, *("[key=value ...]" if name == "overrides" else f"[{name.upper()} ...]" for name in more)]


def _recipe_key_hint(option: str) -> str | None:
    """Return a hint if the option is a key of the recipe, or another tool's name for one; else None."""
    from tunesmith.recipe.key_hints import BY_KEY
    from tunesmith.recipe.load import list_key_paths

    name = option.lstrip("-").replace("-", "_")
    same = [key for key in list_key_paths() if name in (key, key.rpartition(".")[2])]
    keys = BY_KEY[name].keys if name in BY_KEY else same
    settings = " or ".join(f"{key}=VALUE" for key in keys[:3])
    return f"keys of the recipe are written without dashes: {settings}" if keys else None
