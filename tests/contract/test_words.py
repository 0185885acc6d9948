"""No file names a place that exists only on the machine of whoever wrote it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.sources import ROOT

FOLDERS = ("src", "tests", "docs", "recipes", "scripts", "benchmarks", ".ci")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", ".pre-commit-config.yaml")
# Home folders of made-up people, as examples need them.
NOBODY = ("user", "you", "me", "someone", "somebody", "name", "nobody", "x")
PLACES = re.compile(
    r"(?<![\w.~$}/-])/(?:" + "work" + "|" + "root" + r")(?:/|\b(?!\w))|(?<![\w.])/(?:home|Users)/(?P<who>\w+)"
)


def written() -> Iterator[Path]:
    """Yield the text files that are part of the project."""
    for folder in FOLDERS:
        paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        yield from (path for path in paths if "__pycache__" not in path.parts and not path.name.endswith(".pyc"))
    yield from (ROOT / name for name in FILES if (ROOT / name).exists())


def places(text: str) -> list[str]:
    """Return the places in a text that mean one machine."""
    return [found.group() for found in PLACES.finditer(text) if found.group("who") not in NOBODY]


def test_there_is_something_to_look_at() -> None:
    assert len(list(written())) > 80


def test_no_file_names_a_place_on_one_machine() -> None:
    found = {}
    for path in written():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data, not text
        if told := places(text):
            found[path.relative_to(ROOT).as_posix()] = told
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
def test_the_rule_sees(text: str, wrong: bool) -> None:
    assert bool(places(text)) == wrong
