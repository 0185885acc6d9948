"""Write a recipe as YAML with a reason for each setting."""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH = 110
_REASON_AT = 32
_PLAIN = re.compile(r"[A-Za-z_./][\w./@-]*( [\w./-]+)*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "."}


@dataclass(frozen=True, slots=True)
class Setting:
    """A key with a value or, for a section, its settings.

    Attributes:
        reason: the comment next to it.
        is_suggestion: whether it is written as a comment, for the user to choose.
    """

    key: str
    value: Any
    reason: str = ""
    is_suggestion: bool = False


def to_values(settings: Sequence[Setting]) -> dict[str, Any]:
    """Return the settings without suggestions and reasons, as loading their YAML would."""
    chosen = [setting for setting in settings if not setting.is_suggestion]
    return {each.key: to_values(each.value) if _is_section(each.value) else each.value for each in chosen}


def to_yaml(settings: Sequence[Setting]) -> str:
    """Return settings as YAML; the top-level sections are separated by blank lines."""
    return "\n".join("".join(f"{line}\n" for line in _lines(setting, "")) for setting in settings)


def _lines(setting: Setting, indent: str) -> Iterator[str]:
    mark = "# " if setting.is_suggestion else ""
    if _is_section(setting.value):
        yield from _with_reason(f"{indent}{mark}{setting.key}:", setting.reason)
        for inner in setting.value:
            yield from _lines(inner, f"{indent}{mark}  ")
    else:
        yield from _with_reason(f"{indent}{mark}{setting.key}: {_flow(setting.value)}", setting.reason)


def _with_reason(line: str, reason: str) -> Iterator[str]:
    """Yield a line with its reason next to it, or above it if the line is long."""
    at = max(_REASON_AT, len(line) + 2)
    if not reason:
        yield line
    elif at > _WIDTH // 2 + 4:
        indent = line[: len(line) - len(line.lstrip())]
        yield from (f"{indent}# {part}" for part in textwrap.wrap(reason, _WIDTH - len(indent) - 2))
        yield line
    else:
        first, *others = textwrap.wrap(reason, _WIDTH - at - 2)
        yield f"{line:<{at}}# {first}"
        yield from (f"{'':<{at}}# {part}" for part in others)


def _flow(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return f"{value:.1e}".replace("e-0", "e-") if isinstance(value, float) and value < 0.001 else json.dumps(value)


def _is_section(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Setting)
