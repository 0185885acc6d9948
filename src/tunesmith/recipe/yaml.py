"""Read YAML 1.2 into plain values with the line of each key, within limits of size and depth."""

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
from tunesmith.recipe.template import BACKSLASH_HINT, CHARACTER_NAMES

# Recipes are written by hand. A larger file is a mistake or an attack; nodes are counted because a few lines of aliases
# can expand to any number of them.
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16
_MAX_NODES = 10_000

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
# YAML's escapes that a recipe has no use for, but that LaTeX, regular expressions and Windows paths contain.
_REFUSED_ESCAPES = {letter: CHARACTER_NAMES[Scanner.ESCAPE_REPLACEMENTS[letter]] for letter in "0abvferN_LP"}

KeyPath = tuple[str | int, ...]


def read_document(path: Path) -> CommentedMap:
    """Read a YAML file with ruamel, which keeps the line of each key.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """
    if path.is_dir():
        raise RecipeError("is a folder", where=str(path), code="wrong-path", hint="give the YAML file in it")
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        near = closest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"did you mean {path.parent / near}?" if near else "`tunesmith init` writes a recipe to start from"
        raise RecipeError("there is no such recipe", where=str(path), code="not-found", hint=hint) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(raw) > _MAX_BYTES:
        message = f"is larger than {_MAX_BYTES:,} bytes, so it is not a recipe"
        raise RecipeError(message, where=str(path), code="recipe-too-large")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message, hint = "is not UTF-8 text", "save it as UTF-8"
        raise RecipeError(message, where=f"{path}:{line}", code="encoding", hint=hint) from None
    try:
        document = parse_yaml(text, str(path))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        message = f"is not YAML: {error.problem or error.context}"
        raise RecipeError(message, where=f"{path}:{line}", code="not-yaml") from None
    except (YAMLError, ValueError) as error:
        message = f"is not YAML: {str(error).splitlines()[0]}"
        raise RecipeError(message, where=str(path), code="not-yaml") from None
    if not isinstance(document, CommentedMap):
        raise RecipeError("must be a mapping of keys, such as `name: my-run`", where=str(path), code="not-yaml")
    return document


class _Constructor(RoundTripConstructor):
    """Reads dates as text, unchanged: YAML 1.2 has no dates, but ruamel makes them of `2024-01-01`."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of YAML text.

    The events are checked first: they take little memory, however deeply the text is nested.

    Raises:
        RecipeError: the text is nested too deeply, has a tag or an escape that is not supported, or is YAML 1.1.
        YAMLError, ValueError: the text is not YAML.
    """
    depth = 0
    for event in YAML(typ="rt").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > _MAX_DEPTH:
            message = f"is nested more than {_MAX_DEPTH} levels deep"
            raise RecipeError(message, where=f"{where}:{line}", code="recipe-too-large")
        if isinstance(event, NodeEvent) and (tag := getattr(event, "ctag", None)) is not None:
            message, hint = f"tags such as `{tag}` are not supported", "put text that begins with ! in quotes"
            raise RecipeError(message, where=f"{where}:{line}", code="unsupported-yaml", hint=hint)
        if isinstance(event, ScalarEvent) and event.style == '"':
            _refuse_escapes(text[event.start_mark.index : event.end_mark.index], where, line)
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            message, hint = "is not YAML 1.2", "remove the %YAML line"
            raise RecipeError(message, where=f"{where}:{line}", code="unsupported-yaml", hint=hint)
    reader = YAML(typ="rt")
    reader.Constructor = _Constructor
    return reader.load(text)


def _refuse_escapes(quoted_text: str, where: str, line: int) -> None:
    """Raise RecipeError if double-quoted text has an escape that is almost certainly a mistake.

    Args:
        line: the line number of the opening quote.
    """
    for match in _ESCAPE.finditer(quoted_text):
        if (name := _REFUSED_ESCAPES.get(match[1])) is not None:
            excerpt = quoted_text[match.start() : match.start() + 10].splitlines()[0].rstrip('"')
            location = f"{where}:{line + quoted_text.count(chr(10), 0, match.start())}"
            message = f"`{excerpt}` in double quotes begins with {name}"
            raise RecipeError(message, where=location, code="yaml-escape", hint=BACKSLASH_HINT)


def key_locations(node: Any, file: str, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path, `file:line`) of every key and list item."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if key in (node.lc.data or {}):  # a key merged in by `<<` has no line
                yield (*path, str(key)), f"{file}:{node.lc.key(key)[0] + 1}"
            yield from key_locations(value, file, (*path, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*path, index), f"{file}:{node.lc.item(index)[0] + 1}"
            yield from key_locations(value, file, (*path, index))


def to_plain_values(document: Any, where: str) -> Any:
    """Convert ruamel's values to plain Python values, with aliases expanded.

    Raises:
        RecipeError: the aliases expand to too many values.
    """
    nodes = 0

    def plain(node: Any, depth: int = 0) -> Any:
        nonlocal nodes
        nodes += 1
        # An alias inside its own anchor never ends.
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            message = f"has more than {_MAX_NODES:,} values, or aliases that contain themselves"
            raise RecipeError(message, where=where, code="recipe-too-large")
        if isinstance(node, dict):
            return {str(key): plain(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [plain(value, depth + 1) for value in node]
        if isinstance(node, ScalarBoolean):  # an int to Python
            return bool(node)
        return next((kind(node) for kind in (bool, int, float, str) if isinstance(node, kind)), node)

    return plain(document)


def quote_unprintable(value: Any) -> Any:
    """Put text with unprintable characters in double quotes, the only style in which YAML keeps them all."""
    if isinstance(value, dict):
        return {key: quote_unprintable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [quote_unprintable(item) for item in value]
    if isinstance(value, str) and not value.replace("\n", "").isprintable():
        return DoubleQuotedScalarString(value)
    return value
