"""Templates such as `{question}`: the columns that they name, and text in them that cannot have been meant."""

import re
import string
from functools import lru_cache
from typing import NamedTuple

_BRACES = "write columns as {name}, and braces of the text itself as {{ and }}"
_NESTED = re.compile(r"[^.\[\]\s][^\[\]]*(\.[^.\[\]]+|\[[^\[\]]*\])+")
# What remains of LaTeX's \text or \nabla once YAML has read \t as a tab and \n as a line break, if that is no word.
_EATEN = re.compile(
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
KEEP_BACKSLASHES = "to keep backslashes, use single quotes or a block scalar (|-), or double them"


class TemplatePiece(NamedTuple):
    """Literal text of a template and the column that follows it, None at the end; an `optional` column may be empty."""

    text: str
    column: str | None
    optional: bool = False


@lru_cache(maxsize=256)
def parse_template(template: str) -> tuple[TemplatePiece, ...]:
    """Return a template's pieces in order; raise ValueError if it is not a plain template."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}: {_BRACES}") from None
    pieces = []
    for text, name, spec, conversion in parsed:
        if name is None:
            pieces.append(TemplatePiece(text, None))
        else:
            pieces.append(TemplatePiece(text, _column(name, bare=not spec and not conversion), name.endswith("?")))
    return tuple(pieces)


def _column(name: str, *, bare: bool) -> str:
    """Return the column that a template names; `bare` is false if a format or a conversion follows the name."""
    column = name.removesuffix("?")
    if bare and _NESTED.fullmatch(column):
        raise ValueError(
            f"`{{{name}}}` would be a value inside a column, which templates do not reach: give it a column of its own "
            "in the data, or double the braces if they are text"
        )
    if not column or not bare or any(mark in column for mark in ".[]"):
        raise ValueError(f"{_BRACES} (found `{name}`)")
    return column


def columns_in(template: str) -> tuple[str, ...]:
    """Return the columns that a template names in braces, in order; raise ValueError if it is not a plain template."""
    return tuple(piece.column for piece in parse_template(template) if piece.column is not None)


def optional_columns_in(template: str) -> frozenset[str]:
    """Return the columns that a template names as `{name?}`: they may be empty."""
    return frozenset(piece.column for piece in parse_template(template) if piece.column and piece.optional)


def names_in_double_braces(template: str) -> list[str]:
    """Return the names in double braces, with which Jinja writes columns: in a template they are text."""
    return re.findall(r"\{\{\s*(\w+)\s*\}\}", template)


def check_prompt_template(template: str | None) -> str | None:
    """Check a template that must name a column; raise ValueError."""
    template = check_template(template)
    if template is not None and not columns_in(template):
        doubled = names_in_double_braces(template)
        hint = f"{{{doubled[0]}}}, with single braces" if doubled else "{question}"
        raise ValueError(f"names no column; write a column in braces, such as {hint}")
    return template


def check_template(template: str | None) -> str | None:
    """Check a template that need not name a column; raise ValueError if YAML read some of its text as escapes."""
    if template is not None:
        columns_in(template)
        if found := _EATEN.search(template) or _CONTROL.search(template):
            mark, rest = found[0][0], template[found.start() + 1 : found.start() + 9]
            named = CHARACTER_NAMES.get(mark, f"the control character U+{ord(mark):04X}")
            raise ValueError(f"holds {named} before {rest!r}, as double quotes make of a backslash; {KEEP_BACKSLASHES}")
    return template
