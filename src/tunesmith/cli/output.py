"""Print results on stdout, as text or JSON, in any encoding of the terminal."""

import codecs
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from tunesmith.core.errors import TunesmithError


class Reported(Exception):
    """Raised after the result was printed. `error` decides the exit code and the message on stderr."""

    def __init__(self, error: TunesmithError) -> None:
        super().__init__(str(error))
        self.error = error


# ASCII replacements of the signs in reports and `show`, for encodings that lack them.
_PLAIN_SIGNS = {
    "\u27e6": "[[", "\u27e7": "]]", "\u27e8": "<", "\u27e9": ">", "\u00a6": "|", "\u21b5": "\\n", "\u2192": "->",
    "\u2190": "<-", "\u2025": "..", "\u2026": "...", "\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u2713": "y",
    "\u2717": "n",
}  # fmt: skip
_ERRORS = "tunesmith-signs"


def accept_any_encoding() -> None:
    """Replace characters that the terminal's encoding lacks, instead of failing."""
    codecs.register_error(_ERRORS, _plain_signs)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, _ERRORS), (sys.stderr, _ERRORS)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Replace our signs with ASCII, and any other character with `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN_SIGNS.get(character, "?") for character in missing), error.end


def print_result(value: Any, as_json: bool, text: str | Callable[[], str], error: TunesmithError | None = None) -> None:
    """Print a result on stdout, as JSON or as text. The text may be a function, called only if needed.

    Raises:
        Reported: there is an error, which the JSON has too.
    """
    if as_json:
        print_json({**value, "error": error.to_json()} if error else value)
    else:
        print(text() if callable(text) else text)
    if error:
        raise Reported(error)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON. Characters that stdout cannot encode are escaped, so that values stay the same."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=True, indent=indent, default=str)
    print(text)
