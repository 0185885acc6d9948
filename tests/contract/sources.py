"""The package's source files as syntax trees, for the contract tests."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tunesmith"


@dataclass(frozen=True)
class Import:
    """An import of a module, by its full name. `lazy`: inside a function, or for type checking only."""

    module: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Source:
    """One file of the package; `name` is its path in the package: `core/files.py`."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def folder(self) -> str:
        """The top folder, such as `core`; for a module at the root, its name."""
        first = self.name.split("/")[0]
        return first.removesuffix(".py")

    @property
    def imports(self) -> list[Import]:
        return list(imports_in(self.tree))


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def sources() -> tuple[Source, ...]:
    """Return every Python file of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return tuple(Source(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def imports_in(node: ast.AST, *, lazy: bool = False) -> Iterator[Import]:
    """Yield the imports below a node; `from tunesmith import x` counts as `tunesmith.x`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            if module == "tunesmith":
                yield from (Import(f"tunesmith.{alias.name}", child.lineno, lazy) for alias in child.names)
            elif (PACKAGE.parent / module.replace(".", "/")).is_dir():
                yield from (Import(_module_of(module, alias.name), child.lineno, lazy) for alias in child.names)
            else:
                yield Import(module, child.lineno, lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _only_for_types(child)
            yield from imports_in(child, lazy=lazy or inside)


def _module_of(package: str, name: str) -> str:
    """Return the module that `from package import name` imports: a submodule, or the package."""
    is_module = (PACKAGE.parent / package.replace(".", "/") / f"{name}.py").is_file()
    return f"{package}.{name}" if is_module else package


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
