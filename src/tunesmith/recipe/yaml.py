"""YAML 1.2 text -> plain values, and the line of each key. What a recipe has no use for is refused, and bounded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent, ScalarEvent
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.scanner import Scanner

from tunesmith.core.errors import RecipeError
from tunesmith.core.suggest import closest
from tunesmith.recipe.template import CHARACTER_NAMES, KEEP_BACKSLASHES

# A recipe is written by hand; anything larger is a mistake or an attack (alias bombs start small and grow on reading).
_MOST_BYTES = 1 << 20
_MOST_DEPTH = 16
_MOST_NODES = 10_000

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
# Escapes of YAML that nobody means in a recipe, but that look like LaTeX, regular expressions and Windows paths.
_NEVER_MEANT = {letter: CHARACTER_NAMES[Scanner.ESCAPE_REPLACEMENTS[letter]] for letter in "0abvferN_LP"}

KeyPath = tuple[str | int, ...]


def read_document(path: Path) -> CommentedMap:
    """Return a YAML file as ruamel reads it.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """
    if path.is_dir():
        raise RecipeError("is a folder", where=str(path), hint="name the YAML file in it")
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        near = closest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"did you mean {path.parent / near}?" if near else "`tunesmith init` writes a first recipe"
        raise RecipeError("no such recipe", where=str(path), hint=hint) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"is no recipe: it has more than {_MOST_BYTES:,} bytes", where=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError("is not UTF-8 text", where=f"{path}:{line}", hint="save it as UTF-8") from None
    try:
        document = parse_yaml(text, str(path))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"is not YAML: {error.problem or error.context}", where=f"{path}:{line}") from None
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"is not YAML: {str(error).splitlines()[0]}", where=str(path)) from None
    if not isinstance(document, CommentedMap):
        raise RecipeError("must be a mapping of keys, such as `name: my-run`", where=str(path))
    return document


class _Constructor(RoundTripConstructor):
    """YAML 1.2 knows no dates, so `2024-01-01` is text, to the letter."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of YAML text, after a look at its structure, which costs little whatever it holds.

    Raises:
        RecipeError: it is nested too deeply, or uses a part of YAML that recipes do without.
        YAMLError, ValueError: it is not YAML.
    """
    depth = 0
    for event in YAML(typ="rt").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > _MOST_DEPTH:
            raise RecipeError("is nested too deeply for a recipe", where=f"{where}:{line}")
        if isinstance(event, NodeEvent) and (tag := getattr(event, "ctag", None)) is not None:
            raise RecipeError(f"tags such as `{tag}` are not read", where=f"{where}:{line}", hint="use quotes")
        if isinstance(event, ScalarEvent) and event.style == '"':
            _refuse_escapes(text[event.start_mark.index : event.end_mark.index], where, line)
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            raise RecipeError("is not YAML 1.2", where=f"{where}:{line}", hint="remove the %YAML line")
    reader = YAML(typ="rt")
    reader.Constructor = _Constructor
    return reader.load(text)


def _refuse_escapes(quoted_text: str, where: str, line: int) -> None:
    """Raise RecipeError for an escape in double quotes hardly meant as one; `line` is where the quotes open."""
    for found in _ESCAPE.finditer(quoted_text):
        if (name := _NEVER_MEANT.get(found[1])) is not None:
            shown = quoted_text[found.start() : found.start() + 10].splitlines()[0].rstrip('"')
            place = f"{where}:{line + quoted_text.count(chr(10), 0, found.start())}"
            raise RecipeError(f"`{shown}` in double quotes begins with {name}", where=place, hint=KEEP_BACKSLASHES)


def key_locations(node: Any, file: str, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path, file:line) of every key and list item."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if key in (node.lc.data or {}):  # one that was merged in by `<<` has no place of its own
                yield (*path, str(key)), f"{file}:{node.lc.key(key)[0] + 1}"
            yield from key_locations(value, file, (*path, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*path, index), f"{file}:{node.lc.item(index)[0] + 1}"
            yield from key_locations(value, file, (*path, index))


def to_plain_values(document: Any, where: str) -> Any:
    """Return ruamel's annotated values as plain Python ones, aliases written out.

    Raises:
        RecipeError: the aliases stand for too many values.
    """
    nodes = 0

    def plain(node: Any, depth: int = 0) -> Any:
        nonlocal nodes
        nodes += 1
        # A few lines of aliases can stand for any number of values, and one that holds itself for endlessly many.
        if nodes > _MOST_NODES or depth > _MOST_DEPTH:
            raise RecipeError("its aliases stand for too many values", where=where)
        if isinstance(node, dict):
            return {str(key): plain(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [plain(value, depth + 1) for value in node]
        if isinstance(node, ScalarBoolean):  # an int to Python
            return bool(node)
        return next((kind(node) for kind in (bool, int, float, str) if isinstance(node, kind)), node)

    return plain(document)


def quote_unprintable(value: Any) -> Any:
    """Put text with invisible characters in double quotes, the only style in which YAML keeps them all."""
    if isinstance(value, dict):
        return {key: quote_unprintable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [quote_unprintable(one) for one in value]
    if isinstance(value, str) and not value.replace("\n", "").isprintable():
        return DoubleQuotedScalarString(value)
    return value
