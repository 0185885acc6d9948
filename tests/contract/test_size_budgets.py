"""Modules and functions stay short."""

import ast

import pytest
from tests.contract.sources import Source, sources

MODULE_LINES = 400
FUNCTION_LINES = 80


def functions(source: Source) -> list[tuple[str, int]]:
    """Return (name, lines) of every function, including its decorators."""
    sizes = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            sizes.append((f"{source.name}:{first} {node.name}", (node.end_lineno or first) - first + 1))
    return sizes


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_a_module_and_its_functions_are_short(source: Source) -> None:
    assert len(source.text.splitlines()) <= MODULE_LINES
    assert [(name, lines) for name, lines in functions(source) if lines > FUNCTION_LINES] == []


def test_the_rule_finds_a_long_function() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert functions(Source("x.py", f"class A:\n @cached\n async def f():\n{body}")) == [
        ("x.py:2 f", FUNCTION_LINES + 2)
    ]
