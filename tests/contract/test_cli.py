"""The rules of the command line: arguments once, no needless negative flags, groups, and examples that work."""

import shlex
from inspect import Parameter

import cyclopts
import pytest
from cyclopts import App
from cyclopts.argument import Argument
from cyclopts.exceptions import CycloptsError

from tunesmith.cli import app
from tunesmith.cli.app import GROUPS
from tunesmith.recipe.load import list_key_paths

# The only pair of flags: without either, the direction follows from the metric.
NEGATIVE_FLAGS = {"--lower-is-better"}
COMMANDS = [name for name in app if not name.startswith("-")]


def arguments_of(root: App, name: str) -> list[Argument]:
    """Return the parameters in the help of a command."""
    with root.app_stack([name]):
        return [one for one in root[name].assemble_argument_collection(parse_docstring=True) if one.show]


def repeated_arguments(root: App, name: str) -> list[str]:
    """Return the options that are also positional arguments."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    arguments = [argument for argument in arguments_of(root, name) if argument.field_info.kind in kinds]
    return [option for argument in arguments for option in argument.names if option.startswith("--")]


def negative_flags(root: App, name: str) -> set[str]:
    """Return the flags that only negate or empty another one."""
    return {flag for argument in arguments_of(root, name) for flag in argument.negatives}


def examples_of(command: App) -> list[str]:
    """Return the commands in the list that ends a command's help."""
    listed = (command.help_epilogue or "").rpartition("Examples:\n")[2]
    lines = listed.split("\n")
    return [line[3:-1] for line in lines] if all(line.startswith("- `") and line[-1] == "`" for line in lines) else []


def wrong_example(root: App, example: str, name: str) -> str | None:
    """Return why an example does not work: another command, an unknown option or a key that no recipe has."""
    words = shlex.split(example.partition(" > ")[0])
    if words[:1] != ["tunesmith"] or (name and words[1:2] != [name]):
        return "does not call the command"
    try:
        _, bound, *_ = root.parse_args(words[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return str(error)
    overrides = [str(change).partition("=")[0] for change in bound.arguments.get("overrides", ())]
    return next((f"{key} is no key" for key in overrides if key not in list_key_paths()), None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_positional_argument_appears_once(name: str) -> None:
    assert repeated_arguments(app, name) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_only_negates_another(name: str) -> None:
    assert negative_flags(app, name) <= NEGATIVE_FLAGS


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_ends_with_two_examples_that_parse(name: str) -> None:
    examples = examples_of(app[name] if name else app)
    assert len(set(examples)) == 2
    assert [wrong_example(app, example, name) for example in examples] == [None, None]
    assert all(len(example) <= 76 for example in examples), "longer lines wrap in a terminal of 80 columns"


def test_every_command_is_in_a_group() -> None:
    for name in COMMANDS:
        assert [group for group in app[name].group if group in GROUPS] == list(app[name].group), name
    assert len({app[name].group[0] for name in COMMANDS}) == 5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_is_described_in_a_sentence(name: str) -> None:
    for argument in arguments_of(app, name):
        text = argument.parameter.help or ""
        assert text.endswith("."), argument.name
        assert text[0] == text[0].upper(), argument.name


def test_the_rules_find_counter_examples() -> None:
    root = App(name="tunesmith")

    @root.command
    def twice(recipe: str, *, force: bool = False, prompt: list[str] | None = None) -> None: ...

    @root.command(default_parameter=cyclopts.Parameter(negative=()))
    def once(recipe: str, /, *overrides: str, force: bool = False, count: int = 1) -> None: ...

    assert repeated_arguments(root, "twice") == ["--recipe"]
    assert repeated_arguments(root, "once") == []
    assert negative_flags(root, "twice") == {"--no-force", "--empty-prompt"}
    assert negative_flags(root, "once") == set()
    assert examples_of(root["once"]) == []
    for example in ("tunesmith twice x", "once x", "tunesmith once x --cuont 2", "tunesmith once x train.epoch=1"):
        assert wrong_example(root, example, "once")
    assert wrong_example(root, "tunesmith once x train.epochs=1 --count 2 > file", "once") is None
