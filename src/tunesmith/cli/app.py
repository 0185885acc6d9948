"""The root of the command line, and the groups in which `tunesmith --help` lists the commands."""

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from cyclopts import App, Group, Parameter

Command = TypeVar("Command", bound=Callable[..., Any])

GROUPS = START, RUN, JUDGE, MODELS, MACHINE, OPTIONS = tuple(
    Group(name, sort_key=place) for place, name in enumerate(("Start", "Run", "Judge", "Models", "Machine", "Options"))
)
_place = count()


def _epilogue(*commands: str) -> str:
    """Return the end of a help page: the examples, as a Markdown list."""
    return "\n".join(["Examples:", *(f"- `{command}`" for command in commands)])


app = App(
    name="tunesmith",
    help="Fine-tune language models from one recipe, and prove whether the result is better.",
    help_epilogue="`--debug` with any command (or TUNESMITH_DEBUG=1) shows the traceback of a failure.\n\n"
    + _epilogue("tunesmith init --out my.yaml", "tunesmith run my.yaml"),
    version_flags=["--version"],
    help_format="markdown",
    group_parameters=Group.create_default_parameters("Options"),
    default_parameter=Parameter(negative=()),  # no --no-force, no --empty-prompt
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = OPTIONS


def command(group: Group, *examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command of a group. Help lists the commands in the order of their definition.

    Args:
        examples: the example commands at the end of the command's help.
        name: the command; by default the function's name.
    """

    def register(function: Command) -> Command:
        app.command(function, name=name, group=group, sort_key=next(_place), help_epilogue=_epilogue(*examples))
        return function

    return register
