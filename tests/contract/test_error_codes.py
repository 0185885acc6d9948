"""Errors carry documented codes, and tests assert codes and values, so that the wording stays free."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.contract.sources import ROOT, parsed, sources

from tunesmith.core.error_codes import ERROR_CODES


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Yield the literal codes below a node: `code="..."` in a call, and `code = "..."` in a class."""
    for node in ast.walk(tree):
        value = None
        if (isinstance(node, ast.keyword) and node.arg == "code") or (
            isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["code"]
        ):
            value = node.value
        for part in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def matches_in(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which pytest is asked to match the text of an error or a warning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
            yield from (node.lineno for keyword in node.keywords if keyword.arg == "match")


def private_imports_in(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that are imported from the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunesmith"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))


def python_files() -> list[Path]:
    """Return every Python file of the tests."""
    return sorted(path for path in (ROOT / "tests").rglob("*.py"))


def test_every_code_is_documented_and_used() -> None:
    used = {code for source in sources() for code in codes_in(source.tree)}
    texts = "".join(source.text for source in sources() if source.name != "core/error_codes.py")
    assert used - ERROR_CODES.keys() == set()
    assert {code for code in ERROR_CODES if f'"{code}"' not in texts} == set()


def test_codes_are_kebab_case_and_described_in_one_sentence() -> None:
    for code, meaning in ERROR_CODES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code), code
        assert re.fullmatch(r"[A-Z].*\.", meaning), code


def test_tests_assert_codes_instead_of_sentences() -> None:
    for path in python_files():
        lines = list(matches_in(parsed(path.read_text(encoding="utf-8"))))
        assert not lines, f"{path}:{lines}: use tests.support.errors.raises, which asserts type, code and values"


def test_no_test_imports_a_private_name() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): list(private_imports_in(parsed(path.read_text(encoding="utf-8"))))
        for path in python_files()
    }
    assert {name: names for name, names in found.items() if names} == {}


def test_the_rules_find_counter_examples() -> None:
    tree = ast.parse('raise RecipeError("x", code="a" if y else "b")\nclass C(E):\n    code = "c"')
    assert set(codes_in(tree)) == {"a", "b", "c"}
    assert list(matches_in(ast.parse('with pytest.raises(E, match="no"):\n    pass'))) == [1]
    assert list(private_imports_in(ast.parse("from tunesmith.core.files import _line"))) == ["_line"]
