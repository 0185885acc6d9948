"""Markdown in which text of models, data and recipes stays text: no markup, no HTML, no end of a code block."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tunesmith.report.wording import visible

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# Characters that begin a heading, a list or a line at the start of a paragraph.
_BLOCK_START = re.compile(r"^([#=]|[+-](?=\s|$)|-(?=-))")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
_BACKTICKS = re.compile("`+")
# Absolute paths of POSIX and Windows, and addresses of files, in text that was not meant to be published.
_PATH = re.compile(r"(?:file://|(?<![\w.:/])(?:~|[A-Za-z]:)?)[/\\](?:[^\s/\\:'\"`,;]+[/\\])*([^\s/\\:'\"`,;]*)")


class Markdown(str):
    """Text that is Markdown already, so that it is not escaped."""

    __slots__ = ()


def escape(value: Any) -> Markdown:
    """Return a value as one line of Markdown that renders as its text; None becomes an empty text."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(visible("" if value is None else str(value)).split())
    text = _SPECIAL.sub(r"\\\1", text).translate(_HTML)
    return Markdown(_NUMBERED.sub(r"\1\\\2", _BLOCK_START.sub(r"\\\1", text)))


def fenced(text: str, language: str) -> Markdown:
    """Return a code block. Its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{visible(text).rstrip(chr(10))}\n{fence}")


def without_folders(text: str) -> str:
    """Return a text with each absolute path cut to its last name: folders can name users and machines."""
    return _PATH.sub(r"\1", text)


def load_template(path: Path) -> Template:
    """Return a template of a Markdown file; every value is escaped unless it is `Markdown`."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=False,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(path.name)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    """Return a table; every cell is escaped unless it is `Markdown`."""
    lines = [head, ["---"] * len(head)]
    text = [" | ".join(cells) for cells in lines] + [" | ".join(map(escape, row)) for row in rows]
    return Markdown("\n".join(f"| {line} |" for line in text))


def code(text: str) -> Markdown:
    """Return a text as code within a line."""
    shown = " ".join(visible(text).split()) or " "
    marks = "`" * (_longest_run(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    # In a table, a bar ends the cell even within code.
    return Markdown(f"{marks}{pad}{shown}{pad}{marks}".replace("|", "\\|"))


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max(map(len, _BACKTICKS.findall(text)), default=0)
