"""The root of the command line, and the groups in which `tunesmith --help` lists the commands."""

import inspect
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from cyclopts import App, Group, Parameter

Command = TypeVar("Command", bound=Callable[..., Any])

GROUPS = START, RUN, JUDGE, MODELS, MACHINE, OPTIONS = tuple(
    Group(name, sort_key=place) for place, name in enumerate(("Start", "Run", "Judge", "Models", "Machine", "Options"))
)
_place = count()


app = App(
    name="tunesmith",
    help="Fine-tune language models from one recipe, and prove whether the result is better.",
    help_epilogue="`--debug` with any command (or TUNESMITH_DEBUG=1) shows the traceback of a failure.\n\n"
    "Examples:\n- `tunesmith init --out my.yaml`\n- `tunesmith run my.yaml`",
    version_flags=["--version"],
    help_format="markdown",
    group_parameters=Group.create_default_parameters("Options"),
    default_parameter=Parameter(negative=()),  # no --no-force, no --empty-prompt
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = OPTIONS


def command(group: Group, *, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command of a group. Help lists the commands in the order of their definition.

    The examples at the end of the function's docstring become a Markdown list at the end of the command's help.

    Args:
        name: the command; by default the function's name.
    """

    def register(function: Command) -> Command:
        _, title, examples = str(inspect.getdoc(function)).partition("Examples:\n")
        listed = title + "\n".join(f"- `{example.strip()}`" for example in examples.splitlines())
        app.command(function, name=name, group=group, sort_key=next(_place), help_epilogue=listed)
        return function

    return register
