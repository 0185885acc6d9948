"""Files and functions stay small enough to be read at once."""

import ast

import pytest
from tests.contract.sources import Source, sources

MODULE_LINES = 450
FUNCTION_LINES = 80


def functions(source: Source) -> list[tuple[str, int]]:
    """Return (name, lines) of every function, its decorators counted in."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.append((f"{source.name}:{first} {node.name}", (node.end_lineno or first) - first + 1))
    return found


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_it_is_small(source: Source) -> None:
    assert len(source.text.splitlines()) <= MODULE_LINES
    assert [(name, lines) for name, lines in functions(source) if lines > FUNCTION_LINES] == []


def test_the_rule_sees_a_long_function() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert functions(Source("x.py", f"class A:\n @cached\n async def f():\n{body}")) == [
        ("x.py:2 f", FUNCTION_LINES + 2)
    ]
