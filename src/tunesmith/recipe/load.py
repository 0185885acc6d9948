"""Read a recipe: a YAML file and `key=value` overrides become a Recipe, or an error that lists all mistakes by line."""

import io
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Tag, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.emitter import RoundTripEmitter
from ruamel.yaml.error import YAMLError

from tunesmith.core.error_codes import ERROR_CODES
from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.core.suggest import did_you_mean
from tunesmith.recipe.base import Section
from tunesmith.recipe.key_hints import renamed_value, replacement_for
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.validation import Mistake, find_contradictions
from tunesmith.recipe.yaml import KeyPath, key_locations, parse_yaml, quote_unprintable, read_document, to_plain_values

_MAX_SHOWN = 120  # characters of a wrong value
_OTHER_VERSION_HINT = "another version of tunesmith wrote it: continue with that version, or start a new run"

# pydantic's messages in terms of YAML, by error type; braces are values of the error's context.
_MESSAGES = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be `true` or `false`"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("int_from_float", "int_parsing", "int_type"), "must be a whole number"),
    **dict.fromkeys(("model_attributes_type", "model_type"), "must be a section of keys"),
    **dict.fromkeys(("string_too_short", "too_short"), "must not be empty"),
    "date_type": "must be a date, such as 2026-05-01",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}
_CODES = {"extra_forbidden": "unknown-key", "missing": "missing-key", "union_tag_not_found": "missing-key"}

# Replacements for required values that are missing or wrong; no contradiction depends on these keys.
_REPLACEMENTS: dict[KeyPath, Any] = {("name",): "x", ("model", "base"): "x", ("train", "learning_rate"): 1.0}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a recipe.

    Attributes:
        where: `file:line`, or the override.
        key: the dotted key; empty for the recipe as a whole.
        message: what is wrong.
        code: one of ERROR_CODES.
        entry: the list entry that the key is in, in words.
    """

    where: str
    key: str
    message: str
    code: str = "wrong-value"
    entry: str = ""

    def __str__(self) -> str:
        if not self.key or self.where.startswith(f"{self.key}="):  # an override already names its key
            return f"{self.where}: {self.message}"
        return f"{self.where}: {self.key}{self.entry}: {self.message}"


class RecipeProblems(RecipeError):
    """All mistakes of a recipe. `code` is their code if it is the same for all, else that of RecipeError."""

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        codes = {problem.code for problem in problems}
        code = codes.pop() if len(codes) == 1 else None
        super().__init__("\n".join(str(problem) for problem in problems), hint=hint, code=code)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `train.learning_rate=1e-4`.

    Raises:
        RecipeProblems: the recipe has mistakes; all of them are listed.
        RecipeError: the file cannot be read, or an override is not `key=value`.
    """
    path = Path(path)
    hint = _OTHER_VERSION_HINT if path == RunDir(path.parent).resolved_recipe and not overrides else None
    document = read_document(path)
    values = to_plain_values(document, str(path))
    locations = {(): path.name, **dict(key_locations(document, path.name))}
    overridden: list[KeyPath] = []
    for override in overrides:
        key = _apply(values, override)
        overridden.append(key)
        # The override also replaces all that the file has below this key.
        locations = {below: where for below, where in locations.items() if below[: len(key)] != key}
        locations[key] = _shorten(override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = _validation_problems(error, values, locations, overridden)
        problems += [_problem(item, locations) for item in _contradictions_despite(error, values)]
        raise RecipeProblems(sorted(problems, key=_line_and_key), hint=hint) from None
    if contradictions := _contradictions(values, recipe):
        raise RecipeProblems([_problem(item, locations) for item in contradictions], hint=hint)
    return recipe


def _contradictions(values: dict[str, Any], recipe: Recipe) -> list[Mistake]:
    return [*_booleans_as_numbers(values, recipe), *find_contradictions(recipe)]


def _contradictions_despite(error: ValidationError, values: dict[str, Any]) -> list[Mistake]:
    """Return the contradictions of a recipe that has invalid values as well.

    Invalid values are removed or replaced. Contradictions in the same section are not returned, because the invalid
    value may be their cause; nor are any if the rest still cannot be validated.
    """
    values, uncertain = deepcopy(values), set[str | int]()
    for item in error.errors(include_url=False):
        path, owner, _ = _written_path(item["loc"], values)
        field = owner.model_fields.get(str(path[-1])) if path else None
        if item["type"] == "extra_forbidden" or path in _REPLACEMENTS:
            _set(values, path, _REPLACEMENTS.get(path))
        elif path[:1] == ("tuning",):
            uncertain |= {"tuning", "launch"}
            values["tuning"] = {"method": "full"}
        elif field is not None and not field.is_required():
            uncertain.add(path[0])
            _set(values, path, None)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError:
        return []
    return [item for item in _contradictions(values, recipe) if item.path[0] not in uncertain]


def _set(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set the value of a key in place; None removes the key."""
    node: Any = values
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else node[part]
    if not isinstance(node, dict):
        return
    if value is None:
        node.pop(path[-1], None)
    else:
        node[path[-1]] = value


def _booleans_as_numbers(written: Any, validated: Any, path: KeyPath = ()) -> Iterator[Mistake]:
    """Yield numbers that were written as `true` or `false`, which pydantic accepts as 1 and 0."""
    if isinstance(written, bool) and not isinstance(validated, bool):
        yield Mistake(path, f"must be a number (found {str(written).lower()})", "wrong-value")
    elif isinstance(written, dict | list):
        for key, value in written.items() if isinstance(written, dict) else enumerate(written):
            below = getattr(validated, str(key)) if isinstance(validated, Section) else validated[key]
            yield from _booleans_as_numbers(value, below, (*path, key))


class _Emitter(RoundTripEmitter):
    """Writes control characters as numbers, because `parse_yaml` refuses their escapes by letter."""

    ESCAPE_REPLACEMENTS = {"\n": "n", '"': '"', "\\": "\\"}  # noqa: RUF012 (as in the base class)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, with all defaults."""
    text = io.StringIO()
    yaml = YAML()
    yaml.Emitter = _Emitter
    yaml.width = 120
    yaml.dump(quote_unprintable(recipe.model_dump(mode="json")), text)
    return text.getvalue()


def _apply(values: dict[str, Any], override: str) -> KeyPath:
    """Set one `a.b=value` in place and return its path; the value is read as YAML."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        hint = "write key=value, such as train.max_steps=20"
        raise RecipeError(f"`{override}` is not an override", code="wrong-override", hint=hint)
    try:
        value = to_plain_values(parse_yaml(text, override), override) if text.strip() else None
    except (YAMLError, ValueError):
        value = text
    node = values
    for name in path[:-1]:
        if node.get(name) is None:  # absent, or `null`, as `promote` can be in a resolved recipe
            node[name] = {}
        below = node[name]
        if not isinstance(below, dict):
            hint = f"change `{name}` itself"
            raise RecipeError(f"`{override}`: `{name}` is not a section", code="wrong-override", hint=hint)
        node = below
    node[path[-1]] = value
    return path


def _problem(mistake: Mistake, locations: dict[KeyPath, str]) -> Problem:
    location = mistake.path
    while location not in locations:  # up to the nearest section that is written
        location = location[:-1]
    indexes = [part for part in mistake.path if isinstance(part, int)]
    entries = [f"the {_ORDINALS[i]} entry" if i < len(_ORDINALS) else f"entry {i + 1}" for i in indexes]
    entry = f" (of {', '.join(entries)})" if entries else ""
    key = ".".join(map(str, mistake.path))
    return Problem(locations[location], key, mistake.message, mistake.code, entry)


def _validation_problems(
    error: ValidationError, values: dict[str, Any], locations: dict[KeyPath, str], overridden: Sequence[KeyPath]
) -> list[Problem]:
    problems: dict[tuple[str, str], Problem] = {}
    for item in error.errors(include_url=False):
        path, owner, kinds = _written_path(item["loc"], values)
        if item["type"] == "union_tag_invalid":  # pydantic locates the section instead of its key
            path = (*path, item["ctx"]["discriminator"].strip("'"))
        message = _message(dict(item), path, owner)
        if item["type"] == "extra_forbidden" and any(path[-1] in kind.model_fields for kind in kinds):
            message += _replace_section_hint(path, overridden)
        code = _CODES.get(item["type"], item["type"] if item["type"] in ERROR_CODES else "wrong-value")
        problem = _problem(Mistake(path, message, code), locations)
        # pydantic reports a mistake once per alternative of a union.
        problems.setdefault((problem.key, message), problem)
    return list(problems.values())


def _replace_section_hint(path: KeyPath, overridden: Sequence[KeyPath]) -> str:
    """Return how to replace a section if an override has changed its kind, and thereby made a key unknown."""
    siblings = [key for key in overridden if key[:-1] == path[:-1]]
    if not siblings or path in overridden:
        return ""
    section, name = ".".join(map(str, path[:-1])), siblings[-1][-1]
    return f"; `{name}` makes the section one of another kind: replace it whole, '{section}={{{name}: ...}}'"


def _line_and_key(problem: Problem) -> tuple[int, str]:
    line = problem.where.rpartition(":")[2]
    return (int(line) if line.isdigit() else 0, problem.key)


def _written_path(loc: tuple[str | int, ...], values: Any) -> tuple[KeyPath, type[Section], list[type[Section]]]:
    """Return the key path of a pydantic location, which also contains names of union alternatives.

    Also return the section that the key is in, and the alternatives to that section.
    """
    path: list[str | int] = []
    kinds: list[type[Section]] = []
    alternatives: list[type[Section]] = []
    annotation: Any = Recipe
    owner: type[Section] = Recipe
    node = values
    for part in loc:
        sections = _sections_of(annotation)
        if isinstance(node, list) and isinstance(part, int):
            path.append(part)
            node = node[part]
        elif len(sections) > 1:
            annotation = sections[str(part)]
            alternatives = [kind for kind in sections.values() if isinstance(kind, type) and issubclass(kind, Section)]
        elif sections:
            [owner] = sections.values()
            kinds, alternatives = alternatives, []
            field = owner.model_fields.get(str(part))
            annotation = field.annotation if field else None
            path.append(part)
            node = node.get(part) if isinstance(node, dict) else None
    return tuple(path), owner, kinds


def _sections_of(annotation: Any) -> dict[str, Any]:
    """Return the sections (or tuples of sections) that an annotation allows, by their discriminator's tag."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        types = [field.annotation for field in annotation.model_fields.values()]
        literals = [get_args(kind) for kind in types if get_origin(kind) is Literal]
        tag = next((values[0] for values in literals if len(values) == 1), annotation.__name__)
        return {tag: annotation}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        return {tags[0]: inner} if tags else _sections_of(inner)
    return {tag: section for part in get_args(annotation) for tag, section in _sections_of(part).items()}


def _message(item: dict[str, Any], path: KeyPath, owner: type[Section]) -> str:
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {_key_hint(path, list(owner.model_fields))}"
    if kind == "missing":
        return "is missing"
    if kind in ("union_tag_invalid", "literal_error"):
        tag = str(context.get("tag", value))
        if new_name := renamed_value(path, tag):
            return f"`{tag}` is now called `{new_name}`"
        expected = str(context.get("expected_tags", context.get("expected")))
        allowed = re.findall("'([^']*)'", expected) or expected.split(" or ")  # numbers have no quotes
        return f"`{tag}` is not allowed; {did_you_mean(tag, allowed, cutoff=0.5)}"
    if kind == "union_tag_not_found":
        return f"needs the key `{str(context['discriminator']).strip(chr(39))}`"
    if kind in ERROR_CODES:  # raised by one of our validators
        return str(item["msg"])
    message = _MESSAGES[kind].format(**context) if kind in _MESSAGES else item["msg"][0].lower() + item["msg"][1:]
    if kind == "string_type" and isinstance(value, dict):
        message += "; without quotes, YAML reads braces and colons as a mapping"
    return message + (f" (found {_shorten(repr(value))})" if isinstance(value, str | int | float | bool | None) else "")


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}\u2026"


def _key_hint(path: KeyPath, known: Sequence[str]) -> str:
    """Return what to write instead of an unknown key: another tool's setting, a key of another section, or a typo."""
    if replacement := replacement_for(path):
        return replacement
    key = ".".join(str(part) for part in path if not isinstance(part, int))
    elsewhere = [other for other in list_key_paths() if other.rpartition(".")[2] == path[-1]]
    if elsewhere and key not in elsewhere:  # else it is a key of another kind of this section
        first = [other for other in elsewhere if not other.startswith(_LIKE_SOURCE)] or elsewhere
        return f"did you mean {' or '.join(f'`{other}`' for other in first[:3])}?"
    return did_you_mean(str(path[-1]), known, cutoff=0.5)


_LIKE_SOURCE = ("data.valid.", "data.test.", "evaluate.also.")
"""Sections with the keys of `data` and `data.source`, which are suggested instead."""


@cache
def list_key_paths() -> tuple[str, ...]:
    """Return the dotted path of every key that a recipe may have."""
    return tuple(dict.fromkeys(_paths_below(Recipe, "")))


def _paths_below(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for annotation in _sections_of(field.annotation).values():
            if isinstance(annotation, type) and issubclass(annotation, Section):
                yield from _paths_below(annotation, f"{prefix}{name}.")
