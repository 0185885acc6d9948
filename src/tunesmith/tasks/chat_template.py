"""Chat templates, compiled once and in the environment that transformers gives them, which the tests hold this to.

transformers' own function needs seconds until it is imported, and as long again as the template itself for every text.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class ChatTemplate:
    """A chat template; a template is somebody's program, so it runs in a sandbox.

    Args:
        source: its text.
        names: what it may write by name, such as `eos_token`.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self._made = _environment().from_string(source)
        # All that a text may name, as one dictionary: `render` would put it together from three for each.
        self._names = {**self._made.globals, "tools": None, "documents": None, **names}

    def text(self, messages: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """Return what the template writes; raise what it raises where it refuses the conversation."""
        if not messages:  # as transformers does, whatever a template would write of nothing
            raise ValueError("the conversation is empty")
        known = {**self._names, "messages": messages, "add_generation_prompt": generation}
        return "".join(self._made.root_render_func(self._made.new_context(known, shared=True)))


class _Generation(Extension):
    """Lets templates mark what an assistant wrote; the marks change nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` for templates, without the methods of the class."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Names(Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    # jinja's own signature, so that `namespace(self=...)` works.
    def __init__(*arguments: Any, **values: Any) -> None:
        self, first = arguments[0], arguments[1:]
        found = dict(*first, **values)
        for name in found:
            _refuse_hidden(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        Namespace.__setitem__(self, name, value)


def _refuse_hidden(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not keep {name!r} in a namespace")


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Names}
    return made


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is; jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
