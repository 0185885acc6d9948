"""A model's prompt as Python code: the exact messages or text to send, built from the templates of its recipe."""

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.export.literals import python_text
from tunesmith.recipe.columns import message_columns, optional_columns
from tunesmith.recipe.schema import ChatData, Data, TextData
from tunesmith.recipe.template import columns_in, parse_template

_INDENT = " " * 4


@dataclass(frozen=True, slots=True)
class PromptCode:
    """A Python function that returns the prompt of a row.

    Attributes:
        function: the source of the function. It is called `messages` for a chat model, else `prompt`.
        call: a call of the function, with `"..."` for each argument.
        is_chat: whether the function returns messages, else text.
        arguments: variables of the chat template, which servers call `chat_template_kwargs`.
        tools: the recipe's tools; None if it has none, or the rows have them.
        optional: the arguments that may be empty; a line of the template that has nothing else is then left out.
    """

    function: str
    call: str
    is_chat: bool
    arguments: Mapping[str, Any]
    tools: list[dict[str, Any]] | None = None
    optional: tuple[str, ...] = ()


def prompt_code(data: Data) -> PromptCode:
    """Return the code of the prompt of a recipe's `data` section.

    The section may come from anywhere: its texts become string literals of ASCII and printable characters.
    """
    if not isinstance(data, ChatData):
        template = data.prompt if not isinstance(data, TextData) else "{text}"
        names = _argument_names(columns_in(template))
        body = _template_code(template, names, indent=1)
        return _code("prompt", names, f"return {body}", data, is_chat=False)
    system = data.system or ""
    columns = [*columns_in(system), *(message_columns(data)[:1] or columns_in(data.prompt or ""))]
    names = _argument_names(columns)
    entries = [_message("system", system, names)] if system else []
    if conversation := message_columns(data):
        entries.append(f"*{names[conversation[0]]},")
    else:
        entries.append(_message("user", data.prompt or "", names))
    lines = "".join(f"\n{_INDENT * 2}{entry}" for entry in entries)
    return _code("messages", names, f"return [{lines}\n{_INDENT}]", data, is_chat=True)


def _code(name: str, names: Mapping[str, str], body: str, data: Data, *, is_chat: bool) -> PromptCode:
    parameters = list(names.values())
    arguments: dict[str, Any] = {}
    tools = None
    if isinstance(data, ChatData):
        arguments = dict(data.template_arguments)
        tools = list(data.tools) if isinstance(data.tools, tuple) else None
    is_optional = optional_columns(data)
    return PromptCode(
        f"def {name}({', '.join(parameters)}):\n{_INDENT}{body}",
        f"{name}({', '.join(_example(column, parameter, data) for column, parameter in names.items())})",
        is_chat,
        arguments,
        tools,
        tuple(parameter for column, parameter in names.items() if column in is_optional),
    )


def _example(column: str, parameter: str, data: Data) -> str:
    if column in message_columns(data):
        return f'{parameter}=[{{"role": "user", "content": "..."}}]'
    return f'{parameter}="..."'


def _argument_names(columns: Iterable[str]) -> dict[str, str]:
    """Return a distinct Python name for each column."""
    names: dict[str, str] = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column)
        plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"column_{plain}"
        name, number = plain, 2
        while column not in names and name in names.values():
            name, number = f"{plain}_{number}", number + 1
        names.setdefault(column, name)
    return names


def _message(role: str, template: str, names: Mapping[str, str]) -> str:
    """Return the code of a message, as formatters of Python write it."""
    content = _template_code(template, names, indent=3)
    if "\n" not in content:
        return f'{{"role": "{role}", "content": {content}}},'
    lines = ("{", f'{_INDENT}"role": "{role}",', f'{_INDENT}"content": {content},', "},")
    return f"\n{_INDENT * 2}".join(lines)


def _template_code(template: str, names: Mapping[str, str], *, indent: int) -> str:
    """Return an expression for the text of a template, one line of code for each of its lines."""
    lines: list[list[str]] = [[]]
    for text, column, _ in parse_template(template):
        for number, line in enumerate(text.splitlines(keepends=True)):
            if number and lines[-1]:
                lines.append([])
            lines[-1].append(python_text(line))
            if line.endswith("\n"):
                lines.append([])
        if column is not None:
            lines[-1].append(names[column])
    rows = [" + ".join(line) for line in lines if line]
    if len(rows) <= 1 and sum(map(len, lines)) <= 1:
        return rows[0] if rows else '""'
    inner = f"\n{_INDENT * (indent + 1)}"
    return f"({inner}{f'{inner}+ '.join(rows)}\n{_INDENT * indent})"
