"""Which modules `tuning.freeze` names: patterns over the dotted names of modules.

A pattern is a part of a module's path, and freezes everything below it. A part of a pattern is a name, in which `*`
matches any characters, or a range of numbers such as `0-11`: `embed_tokens`, `layers.0-11`, `layers.*.mlp`.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tunesmith.architecture.shapes import Shapes
from tunesmith.architecture.weight_headers import EMBEDDINGS, OUTPUTS
from tunesmith.core.errors import RecipeError
from tunesmith.core.suggest import closest

# Where the embedding and the output layer may be.
_ROOTS = ("model", "transformer")
_MAX_NAMED = 8


def is_frozen(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches a module or parameter, or a module that contains it."""
    parts = name.split(".")
    return any(_matches(parts, pattern.split(".")) for pattern in patterns)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    starts = range(len(parts) - len(pattern) + 1)
    return any(all(map(_part_matches, parts[start:], pattern)) for start in starts)


def _part_matches(part: str, pattern: str) -> bool:
    if bounds := re.fullmatch(r"(\d+)-(\d+)", pattern):
        return part.isdecimal() and int(bounds[1]) <= int(part) <= int(bounds[2])
    return fnmatchcase(part, pattern)


def require_matches(patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise RecipeError if a pattern matches none of these names, or if the patterns match all of them."""
    known = list(names)
    for pattern in patterns:
        if not any(is_frozen(name, [pattern]) for name in known):
            modules = dict.fromkeys(_module_parts(known, pattern.count(".") + 1))
            near = closest(pattern, modules, cutoff=0.5)
            hint = f"did you mean `{near}`?" if near else f"it has {', '.join(list(modules)[:_MAX_NAMED])}"
            raise RecipeError(f"the model has no module {pattern}", where="tuning.freeze", hint=hint, code="no-module")
    if known and all(is_frozen(name, patterns) for name in known):
        message = "the patterns freeze the whole model, so nothing would be trained"
        raise RecipeError(message, where="tuning.freeze", hint="remove some of them", code="no-module")


def _module_parts(names: Sequence[str], length: int) -> Iterable[str]:
    """Yield the runs of `length` parts of the modules' paths, the outermost first."""
    paths = [name.removesuffix(".weight").removesuffix(".bias").split(".") for name in names]
    for start in range(max(map(len, paths), default=0)):
        for path in paths:
            if len(run := path[start : start + length]) == length:
                yield ".".join(run)


def refuse_frozen_tokens(patterns: Sequence[str]) -> None:
    """Raise RecipeError if patterns freeze the embedding or the output layer, which hold the rows of new tokens."""
    modules = (f"{root}.{name}" for root in _ROOTS for name in (*EMBEDDINGS, *OUTPUTS))
    if frozen := next((module for module in modules if is_frozen(module, patterns)), None):
        message = f"freezes `{frozen.rpartition('.')[2]}`, so the rows of new tokens would not be trained"
        hint = "do not freeze the embedding and the output layer, or add no tokens"
        raise RecipeError(message, where="tuning.freeze", hint=hint, code="contradiction")


def frozen_parameters(shapes: Shapes, patterns: Sequence[str]) -> int:
    """Return the number of parameters that patterns freeze."""
    frozen = 0
    for stack in shapes.stacks:
        whole = stack.parameters(shapes.hidden) // max(1, stack.count)
        for number in range(stack.count):
            if stack.prefix and is_frozen(f"{stack.prefix}.{number}", patterns):
                frozen += whole
                continue
            matched = (part for part in stack.layer.linear if is_frozen(stack.name_of(number, part), patterns))
            frozen += sum(part.parameters for part in matched)
    table = shapes.vocabulary * shapes.hidden
    is_input, is_output = (
        any(is_frozen(f"model.{name}", patterns) for name in names) for names in (EMBEDDINGS, OUTPUTS)
    )
    if shapes.tied:
        return frozen + table * (is_input or is_output)
    return frozen + table * (is_input + is_output)


def trains_embedding(shapes: Shapes, patterns: Sequence[str]) -> bool:
    """Return whether the input embedding, or the output layer that it is tied to, is trained."""
    names = (*EMBEDDINGS, *(OUTPUTS if shapes.tied else ()))
    return not any(is_frozen(f"model.{name}", patterns) for name in names)
