"""Parse templates such as `{question}`, and find text in them that YAML has changed."""

import re
import string
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from tunesmith.recipe.base import setting_error

_SYNTAX = "write columns as {name} or {name.key}, and literal braces as {{ and }}"
_INDEXED = re.compile(r"[^.\[\]\s][^\[\]]*\[[^\[\]]*\].*")
# LaTeX commands such as \text or \nabla after YAML has read \t as a tab and \n as a line break. Followed by a letter or
# digit, they are taken for ordinary words after a tab or a line break.
_BROKEN_LATEX = re.compile(
    r"\t(ext\w*|imes|heta|frac|triangle\w*|riangle\w*|ilde|herefore|op|au|o)(?![^\W_])"
    r"|\n(abla|eq|ot|otin|ewline|ewcommand|mid|leq|geq|parallel)(?![^\W_])"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
CHARACTER_NAMES = {
    "\0": "NUL", "\a": "a bell", "\b": "a backspace", "\v": "a vertical tab", "\f": "a form feed",
    "\r": "a carriage return", "\x1b": "an escape character", "\x85": "a next-line character",
    "\xa0": "a no-break space", "\u2028": "a line separator", "\u2029": "a paragraph separator",
    "\t": "a tab", "\n": "a line break",
}  # fmt: skip
BACKSLASH_HINT = "to keep backslashes, use single quotes or a block scalar (|-), or double them"


class TemplatePiece(NamedTuple):
    """Literal text of a template and the column after it, None at the end; an `optional` column may be empty."""

    text: str
    column: str | None
    optional: bool = False


@lru_cache(maxsize=256)
def parse_template(template: str) -> tuple[TemplatePiece, ...]:
    """Return a template's pieces in order; raise a setting_error if its syntax is wrong."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise setting_error("wrong-template", f"{error}: {_SYNTAX}") from None
    pieces = []
    for text, name, spec, conversion in fields:
        if name is None:
            pieces.append(TemplatePiece(text, None))
        else:
            pieces.append(TemplatePiece(text, _column(name, bare=not spec and not conversion), name.endswith("?")))
    return tuple(pieces)


def _column(name: str, *, bare: bool) -> str:
    """Return the column of a field; `bare` is false if a format or a conversion follows its name."""
    column = name.removesuffix("?")
    if bare and _INDEXED.fullmatch(column):
        path = re.sub(r"[\[\].'\"]+", ".", column).strip(".")
        hint = f"write `{{{path}}}`, or double the braces if they are text"
        raise setting_error("wrong-template", f"`{{{name}}}` has brackets; paths into a column have dots: {hint}")
    if not bare or not all(column.split(".")) or any(mark in column for mark in "[]"):
        raise setting_error("wrong-template", f"{_SYNTAX} (found `{name}`)")
    return column


def columns_in(template: str) -> tuple[str, ...]:
    """Return the columns of a template in order; raise a setting_error if its syntax is wrong."""
    return tuple(piece.column for piece in parse_template(template) if piece.column is not None)


def names_in_double_braces(template: str) -> list[str]:
    """Return the names in double braces: columns in Jinja's syntax, but literal text in a template."""
    return re.findall(r"\{\{\s*(\w+)\s*\}\}", template)


def _check_has_column(template: str) -> str:
    if not columns_in(template):
        example = next(iter(names_in_double_braces(template)), "question")
        raise setting_error("wrong-template", f"has no column; write columns in single braces, such as {{{example}}}")
    return template


def _check_template(template: str) -> str:
    """Check a template's syntax, and that YAML has not read some of its text as escapes."""
    parse_template(template)
    if match := _BROKEN_LATEX.search(template) or _CONTROL.search(template):
        character, rest = match[0][0], template[match.start() + 1 : match.start() + 9]
        name = CHARACTER_NAMES.get(character, f"the control character U+{ord(character):04X}")
        message = f"contains {name} before {rest!r}, from a backslash in double quotes; {BACKSLASH_HINT}"
        raise setting_error("yaml-escape", message)
    return template


Template = Annotated[str, AfterValidator(_check_template)]
PromptTemplate = Annotated[Template, AfterValidator(_check_has_column)]
"""A template that must contain a column."""
