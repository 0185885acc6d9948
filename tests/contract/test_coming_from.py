"""The tables of docs/coming-from.md agree with the hints that an unknown key gives."""

import re
from pathlib import Path

import pytest

from tunesmith.recipe.key_hints import BY_KEY
from tunesmith.recipe.load import list_key_paths

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"


def pairs(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (setting of the other tool, our keys) of every row of the tables.

    A row with as many settings as keys pairs them; otherwise every setting means all keys.
    """
    found = []
    for line in text.splitlines():
        if re.fullmatch(r"\| `.*` \| `.*` \|", line):
            theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|"))
            found += [
                (name, (ours[place],) if len(theirs) == len(ours) else tuple(ours)) for place, name in enumerate(theirs)
            ]
    return found


PAIRS = pairs(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[theirs for theirs, _ in PAIRS])
def test_the_page_says_what_the_hint_says(theirs: str, ours: tuple[str, ...]) -> None:
    assert set(ours) <= set(list_key_paths())
    assert BY_KEY[theirs].keys == ours


def test_the_tables_are_found() -> None:
    assert len(PAIRS) > 50
    assert pairs("| `a`, `b` | `x.y` |\n|---|---|\n| `c` | `d`, `e` |") == [
        ("a", ("x.y",)), ("b", ("x.y",)), ("c", ("d", "e")),
    ]  # fmt: skip
