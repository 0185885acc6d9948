"""Chat templates, compiled once, in the same Jinja environment as in transformers (a test compares the two).

transformers' own function takes seconds to import, and doubles the time for each conversation.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

DATE_FUNCTION = "strftime_now"
"""The variable by which templates write the current date: a function of a format. Arguments may replace it."""


class ChatTemplate:
    """A compiled chat template. It is a program of the model's author, so it runs in a sandbox.

    Args:
        source: text of the template.
        variables: variables that it may use, such as `eos_token`.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = _environment()
        self._template = environment.from_string(source)
        # The functions of templates are variables too, which arguments may replace.
        names = {node.name for node in environment.parse(source).find_all(nodes.Name) if node.ctx == "load"}
        undeclared = meta.find_undeclared_variables(environment.parse(source))
        self._read = undeclared | (names & environment.globals.keys())
        # One dictionary, because Jinja's `render` would merge three of them for each conversation.
        self._variables = {**self._template.globals, "documents": None, **variables}

    def unread(self, names: Iterable[str]) -> list[str]:
        """Return those of some variables that no part of the template reads."""
        return [name for name in names if name not in self._read]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] = {},
    ) -> str:
        """Render a conversation. If the template refuses it, its own exception is raised.

        Args:
            generation: add the beginning of an answer (`add_generation_prompt`).
            tools: the tools that the model may call, in OpenAI's form.
            arguments: further variables, such as `enable_thinking`; they replace those of the constructor.
        """
        if not messages:  # as in transformers, even if the template accepts it
            raise ValueError("the conversation is empty")
        conversation = {"messages": messages, "tools": tools, "add_generation_prompt": generation}
        variables = {**self._variables, **arguments, **conversation}
        return "".join(self._template.root_render_func(self._template.new_context(variables, shared=True)))


class _Generation(Extension):
    """Accepts `{% generation %}` blocks, with which templates mark the assistant's text, and renders their contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

    def _contents(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` for templates, without access to the class and its methods."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _SafeNamespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    # Jinja's signature, so that `namespace(self=...)` works.
    def __init__(*arguments: Any, **values: Any) -> None:
        self, positional = arguments[0], arguments[1:]
        attributes = dict(*positional, **values)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not set {name!r} in a namespace")


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [_Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    functions = {"raise_exception": _raise_exception, DATE_FUNCTION: _strftime_now}
    environment.globals |= {**functions, "dict": _Dict(), "namespace": _SafeNamespace}
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return plain JSON; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format_string: str) -> str:
    return datetime.now().strftime(format_string)
