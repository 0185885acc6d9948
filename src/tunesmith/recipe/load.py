"""YAML file + `key=value` overrides -> Recipe, or every mistake at once with its line."""

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

from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.core.suggest import did_you_mean
from tunesmith.recipe.base import Section
from tunesmith.recipe.key_hints import renamed_value, replacement_for
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.validation import find_contradictions
from tunesmith.recipe.yaml import KeyPath, key_locations, parse_yaml, quote_unprintable, read_document, to_plain_values

_MOST_SHOWN = 120
_OTHER_VERSION = "another version of tunesmith wrote it: go on with that version, or start another run"

# What pydantic says in the words of Python, in the words of YAML.
_PLAINLY = {
    "model_attributes_type": "must be a section of keys",
    "model_type": "must be a section of keys",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
}


# Required keys that contradict no other, and values that replace theirs if they are missing or wrong.
_DECIDE_NOTHING: dict[KeyPath, Any] = {("name",): "x", ("model", "base"): "x", ("train", "learning_rate"): 1.0}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a recipe: where (`file:line` or `key=value`), which key, what is wrong.

    `entry` names, in words, the entry of a list that it is in.
    """

    where: str
    key: str
    message: str
    entry: str = ""

    def __str__(self) -> str:
        # An override names its key already.
        named = not self.key or self.where.startswith(f"{self.key}=")
        return f"{self.where}: {self.message}" if named else f"{self.where}: {self.key}{self.entry}: {self.message}"


class RecipeProblems(RecipeError):
    """All mistakes of a recipe, told at once."""

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems), hint=hint)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `train.learning_rate=1e-4`.

    Raises:
        RecipeError: the file cannot be read, or holds mistakes; all of them are listed.
    """
    path = Path(path)
    hint = _OTHER_VERSION if path == RunDir(path.parent).resolved_recipe and not overrides else None
    document = read_document(path)
    values = to_plain_values(document, str(path))
    places = {(): path.name, **dict(key_locations(document, path.name))}
    changed: list[KeyPath] = []
    for override in overrides:
        key = _apply(values, override)
        changed.append(key)
        # What the file says below the key is overridden too.
        places = {place: where for place, where in places.items() if place[: len(key)] != key}
        places[key] = _cut(override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = _problems(error, values, places, changed)
        problems += [_problem(key, message, places) for key, message in _other_clashes(error, values)]
        raise RecipeProblems(sorted(problems, key=_order), hint=hint) from None
    if clashes := _clashes(values, recipe):
        raise RecipeProblems([_problem(key, message, places) for key, message in clashes], hint=hint)
    return recipe


def _clashes(values: dict[str, Any], recipe: Recipe) -> list[tuple[KeyPath, str]]:
    return [*_booleans_as_numbers(values, recipe), *find_contradictions(recipe)]


def _other_clashes(error: ValidationError, values: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Return the contradictions of a recipe that has wrong keys as well; none if it cannot be read without those.

    Contradictions in the section of a wrong value are left out, because that value may be their cause.
    """
    values, unsure = deepcopy(values), set[str | int]()
    for item in error.errors(include_url=False):
        path, owner, _ = _written_path(item["loc"], values)
        if item["type"] == "extra_forbidden":
            _set(values, path, None)
        elif path in _DECIDE_NOTHING:
            _set(values, path, _DECIDE_NOTHING[path])
        elif path[:1] == ("tuning",):
            unsure |= {"tuning", "launch"}
            values["tuning"] = {"method": "full"}
        elif _is_optional(owner, path):
            unsure.add(path[0])
            _set(values, path, None)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError:
        return []
    return [(path, message) for path, message in _clashes(values, recipe) if path[0] not in unsure]


def _is_optional(owner: type[Section], path: KeyPath) -> bool:
    field = owner.model_fields.get(str(path[-1])) if path else None
    return field is not None and not field.is_required()


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


def _booleans_as_numbers(written: Any, read: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield the numbers that were written as `true` or `false`, which to Python are 1 and 0."""
    if isinstance(written, bool) and not isinstance(read, bool):
        yield path, f"must be a number (found {str(written).lower()})"
    elif isinstance(written, dict):
        for key, value in written.items():
            below = read[key] if isinstance(read, dict) else getattr(read, key)
            yield from _booleans_as_numbers(value, below, (*path, key))
    elif isinstance(written, list):
        for index, (value, one) in enumerate(zip(written, read, strict=True)):
            yield from _booleans_as_numbers(value, one, (*path, index))


class _Emitter(RoundTripEmitter):
    """Writes control characters by number, because escapes by letter are refused when a recipe is read."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.ESCAPE_REPLACEMENTS = {"\n": "n", '"': '"', "\\": "\\"}


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out."""
    text = io.StringIO()
    yaml = YAML()
    yaml.Emitter = _Emitter
    yaml.width = 120
    yaml.dump(quote_unprintable(recipe.model_dump(mode="json")), text)
    return text.getvalue()


def _apply(values: dict[str, Any], override: str) -> KeyPath:
    """Set one `a.b=value` in place and return its path; the value is read as YAML."""
    key, sign, text = override.partition("=")
    path = tuple(key.split("."))
    if not sign or not all(path):
        raise RecipeError(f"`{override}` is not an override", hint="write key=value, such as train.max_steps=20")
    try:
        value = to_plain_values(parse_yaml(text, override), override) if text.strip() else None
    except (YAMLError, ValueError):
        value = text
    node = values
    for name in path[:-1]:
        if node.get(name) is None:  # also a section that is written as `null`, as `promote` is in a resolved recipe
            node[name] = {}
        below = node[name]
        if not isinstance(below, dict):
            raise RecipeError(f"`{override}`: `{name}` holds a value, not a section")
        node = below
    node[path[-1]] = value
    return path


def _place(path: KeyPath, places: dict[KeyPath, str]) -> str:
    """Return the place of a key, or of the nearest section above it that is written."""
    while path not in places:
        path = path[:-1]
    return places[path]


def _problem(path: KeyPath, message: str, places: dict[KeyPath, str]) -> Problem:
    indexes = [part for part in path if isinstance(part, int)]
    entries = [f"the {_ORDINALS[i]} entry" if i < len(_ORDINALS) else f"entry {i + 1}" for i in indexes]
    entry = f" (of {', '.join(entries)})" if entries else ""
    return Problem(_place(path, places), ".".join(map(str, path)), message, entry)


def _problems(
    error: ValidationError, values: dict[str, Any], places: dict[KeyPath, str], changed: Sequence[KeyPath]
) -> list[Problem]:
    found: dict[tuple[str, str], Problem] = {}
    for item in error.errors(include_url=False):
        path, owner, kinds = _written_path(item["loc"], values)
        if item["type"] == "union_tag_invalid":  # pydantic names the section, not its key that is wrong
            path = (*path, item["ctx"]["discriminator"].strip("'"))
        message = _message(dict(item), path, owner)
        if item["type"] == "extra_forbidden" and any(path[-1] in kind.model_fields for kind in kinds):
            message += _of_another_kind(path, changed)
        problem = _problem(path, message, places)
        # A union reports one mistake once per alternative.
        found.setdefault((problem.key, message), problem)
    return sorted(found.values(), key=_order)


def _of_another_kind(path: KeyPath, changed: Sequence[KeyPath]) -> str:
    """Return what to write instead, where an override beside a key has made its section one of another kind."""
    beside = [key for key in changed if key[:-1] == path[:-1]]
    if not beside or path in changed:
        return ""
    section, name = ".".join(map(str, path[:-1])), beside[-1][-1]
    return f"; with `{name}` the section is of another kind: replace it whole, '{section}={{{name}: ...}}'"


def _order(problem: Problem) -> tuple[int, str]:
    line = problem.where.rpartition(":")[2]
    return (int(line) if line.isdigit() else 0, problem.key)


def _written_path(loc: tuple[str | int, ...], values: Any) -> tuple[KeyPath, type[Section], list[type[Section]]]:
    """Return pydantic's location without the names of alternatives, which nobody wrote.

    Also the section it is in, and the kinds that this section could have been.
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
            alternatives = [one for one in sections.values() if isinstance(one, type) and issubclass(one, Section)]
        elif sections:
            [owner] = sections.values()
            kinds, alternatives = alternatives, []
            field = owner.model_fields.get(str(part))
            annotation = field.annotation if field else None
            path.append(part)
            node = node.get(part) if isinstance(node, dict) else None
    return tuple(path), owner, kinds


def _sections_of(annotation: Any) -> dict[str, Any]:
    """Return the sections (or tuples of them) that an annotation allows, by the tag that tells them apart."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        literals = [field.annotation for field in annotation.model_fields.values()]
        tags = [get_args(one)[0] for one in literals if get_origin(one) is Literal and len(get_args(one)) == 1]
        return {tags[0] if tags else annotation.__name__: annotation}
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        tags = [one.tag for one in notes if isinstance(one, Tag)]
        return {tags[0]: inner} if tags else _sections_of(inner)
    return {tag: section for part in get_args(annotation) for tag, section in _sections_of(part).items()}


def _message(item: dict[str, Any], path: KeyPath, owner: type[Section]) -> str:
    kind, context, given = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {_instead_of(path, list(owner.model_fields))}"
    if kind == "missing":
        return "is missing"
    if kind in ("union_tag_invalid", "literal_error"):
        tag = str(context.get("tag", given))
        if current := renamed_value(path, tag):
            return f"`{tag}` is not known; here it is `{current}`"
        expected = str(context.get("expected_tags", context.get("expected")))
        known = re.findall("'([^']*)'", expected) or expected.split(" or ")  # numbers have no quotes
        return f"`{tag}` is not known; {did_you_mean(tag, known, cutoff=0.5)}"
    if kind == "union_tag_not_found":
        return f"needs the key `{str(context['discriminator']).strip(chr(39))}`"
    if kind == "value_error":
        return str(context["error"])
    message = _PLAINLY.get(kind, str(item["msg"][0].lower() + item["msg"][1:]))
    if kind == "string_type" and isinstance(given, dict):
        message += ", and without quotes braces and colons make a mapping of it"
    return message + (f" (found {_cut(repr(given))})" if isinstance(given, str | int | float | bool | None) else "")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}\u2026"


def _instead_of(path: KeyPath, known: Sequence[str]) -> str:
    """Return what to write instead of an unknown key: another tool's setting, a key of another section, or a typo."""
    if ours := replacement_for(path):
        return ours
    own = ".".join(str(part) for part in path if not isinstance(part, int))
    elsewhere = [key for key in list_key_paths() if key.rpartition(".")[2] == path[-1]]
    if elsewhere and own not in elsewhere:  # else it is a key of another kind of this section
        return f"did you mean {' or '.join(f'`{key}`' for key in elsewhere[:3])}?"
    return did_you_mean(str(path[-1]), known, cutoff=0.5)


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
