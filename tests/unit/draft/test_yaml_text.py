"""Settings become YAML that loads to the same values, with reasons as comments."""

from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from tunesmith.draft.yaml_text import Setting, to_values, to_yaml

LONG = "because " * 40


@pytest.mark.parametrize(
    "value",
    ["a", "yes", "null", "1", "a: b", "#x", "{a}\n\n{b?}", '"\\S"', "\u00e9 x", "", True, 3, 0.05, 2e-4, 1e-5, None,
     ["a b", "c: d"], {"file": "x y.csv", "rename": {"in.put": "in_put"}}, [{"column": "a", "matches": r"\S"}]],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("reason", ["", "short", LONG])
def test_values_survive(value: Any, reason: str) -> None:
    settings = [Setting("a", [Setting("b", value, reason), Setting("c", 1)], reason), Setting("d", value)]
    assert YAML(typ="safe").load(StringIO(to_yaml(settings))) == to_values(settings)


def test_suggestions_are_comments() -> None:
    settings = [
        Setting("a", [Setting("b", 1), Setting("c", "x", "if you like", is_suggestion=True)]),
        Setting("d", [Setting("e", 2)], is_suggestion=True),
    ]
    assert to_values(settings) == {"a": {"b": 1}}
    assert to_yaml(settings) == f"a:\n  b: 1\n{'  # c: x':<32}# if you like\n\n# d:\n#   e: 2\n"


def test_lines_are_short_enough_to_read() -> None:
    text = to_yaml([Setting("a", "x" * 20, LONG), Setting("b", "x y: " * 15, LONG)])
    assert max(len(line) for line in text.splitlines()) <= 110
