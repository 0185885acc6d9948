"""No file names a path of one particular machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.sources import ROOT

FOLDERS = ("src", "tests", "docs", "recipes", "scripts", "benchmarks", ".ci")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", ".pre-commit-config.yaml")
# Home folders of invented users, for examples.
INVENTED_USERS = ("user", "you", "me", "someone", "somebody", "name", "nobody", "x")
MACHINE_PATHS = re.compile(
    r"(?<![\w.~$}/-])/(?:" + "work" + "|" + "root" + r")(?:/|\b(?!\w))|(?<![\w.])/(?:home|Users)/(?P<user>\w+)"
)


def project_files() -> Iterator[Path]:
    """Yield the files of the project."""
    for folder in FOLDERS:
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        yield from (path for path in paths if "__pycache__" not in path.parts and not path.name.endswith(".pyc"))
    yield from (ROOT / name for name in FILES if (ROOT / name).exists())


def machine_paths(text: str) -> list[str]:
    """Return the paths in a text that exist on one machine only."""
    return [match.group() for match in MACHINE_PATHS.finditer(text) if match.group("user") not in INVENTED_USERS]


def test_files_are_found() -> None:
    assert len(list(project_files())) > 80


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {}
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data, not text
        if paths := machine_paths(text):
            found[path.relative_to(ROOT).as_posix()] = paths
    assert found == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("in /" + "work/main/src", True),
        ("'/" + "root/.cache'", True),
        ("cd /" + "work", True),
        ("/home/" + "maria/runs", True),
        ("/Users/" + "maria", True),
        ("/home/user/runs", False),
        ("docs/" + "work/x", False),
        ("a network/" + "root/x", False),
        ("/" + "workshop/", False),
        ("https://example.org/" + "root/", False),
    ],
)
def test_the_rule_finds_counter_examples(text: str, wrong: bool) -> None:
    assert bool(machine_paths(text)) == wrong
