"""Mistakes on the command line, as errors that name the arguments of the verb."""

import inspect
from collections.abc import Callable
from typing import Any

from cyclopts.exceptions import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from tunesmith.core.errors import RecipeError

# What other tools call a verb.
_VERBS = {
    "finetune": "run", "fine-tune": "run", "sft": "run", "preprocess": "prepare", "eval": "evaluate",
    "test": "evaluate", "inference": "generate", "predict": "generate", "ask": "generate", "list": "models",
    "dry-run": "plan", "validate": "plan", "check": "plan", "ladder": "sweep", "new": "init", "inspect": "show",
    "info": "status",
}  # fmt: skip
# Former names of our own options.
_OPTIONS = {"--bar": "--threshold", "--rung": "--trial"}
# The hint for an extra argument, for verbs that usually get one by the same mistake.
_TOO_MANY = {
    "generate": "put the text of the prompt in quotes after --prompt",
    "chat": "start the chat, then type",
    "compare": "two runs are compared by their scores: "
    "tunesmith verdict RUN/evaluate/tuned/scores.jsonl OTHER/evaluate/tuned/scores.jsonl",
    "score": "score one file at a time",
}


def usage_error(error: CycloptsError) -> RecipeError:
    """Return an error that names the mistake, with the arguments of the verb or the help to read as its hint."""
    error.verbose = False
    verb = " ".join(error.command_chain or ())
    usage = f"tunesmith {verb} --help" if verb else "tunesmith --help"
    message, hint = str(error), usage
    if isinstance(error, UnusedCliTokensError) and error.target:
        takes = _positional(error.target)
        extra = " ".join(f"`{token}`" for token in error.unused_tokens or ())
        message = f"`{verb}` takes {' '.join(takes) or 'no arguments'}; unexpected: {extra}"
        hint = _TOO_MANY.get(verb, usage)
    elif isinstance(error, MissingArgumentError) and error.argument and not error.tokens_so_far and not error.keyword:
        name = error.argument.name
        if name.lstrip("-").upper().replace("-", "_") in (takes := _positional(error.target)):
            message, hint = f"{name.lstrip('-').upper()} is missing", f"tunesmith {verb} {' '.join(takes)}; see {usage}"
    elif isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        hint = f"it is {_OPTIONS[option]} now" if option in _OPTIONS else _recipe_key(option) or usage
    elif isinstance(error, UnknownCommandError):
        word = next((token for token in error.unused_tokens or () if token in _VERBS), None)
        hint = f"did you mean `tunesmith {_VERBS[word]}`?" if word else usage
    return RecipeError(message, code="usage", hint=hint)


def _positional(target: Callable[..., Any] | None) -> list[str]:
    """Return the names of a verb's positional arguments, as help shows them."""
    if target is None:
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        "[key=value ...]" if one.kind is inspect.Parameter.VAR_POSITIONAL else one.name.upper()
        for one in inspect.signature(target).parameters.values()
        if one.kind in kinds
    ]


def _recipe_key(option: str) -> str | None:
    """Return a hint for an option that is a key of the recipe, or another tool's name for one; None for others."""
    from tunesmith.recipe.key_hints import BY_KEY
    from tunesmith.recipe.load import list_key_paths

    name = option.lstrip("-").replace("-", "_")
    ours = (
        BY_KEY[name].keys
        if name in BY_KEY
        else [key for key in list_key_paths() if name in (key, key.rpartition(".")[2])]
    )
    if not ours:
        return None
    return f"keys of the recipe are written without dashes: {' or '.join(f'{key}=VALUE' for key in ours[:3])}"
