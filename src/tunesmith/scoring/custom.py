"""Custom metrics: a function named in the recipe, `package.module:function` or `package.module.function`.

It takes two lists, predictions and references, and returns one number per row. Higher is better, unless it has the
attribute `higher_is_better = False`. A reference is a text, or a list of texts if a row has several.

Naming a function runs its module, so a recipe with a custom metric runs code of its author. Installed packages have
precedence over modules in `folder`, so that none there can replace a library.
"""

import ast
import importlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")
_SIGNATURE_HINT = "it takes the lists `predictions` and `references` and returns one number a row"


def is_custom(name: str) -> bool:
    """Return whether a name has the form of a custom metric: `module:function` or `module.function`."""
    return _NAME.fullmatch(name) is not None


def custom_metrics(names: Sequence[str], folder: Path | None = None) -> dict[str, "CustomMetric"]:
    """Import the custom metrics among some names. Raises RecipeError as `CustomMetric` does."""
    return {name: CustomMetric(name, folder) for name in names if is_custom(name)}


class CustomMetric:
    """A function of the user that computes a metric.

    Args:
        name: dotted name.
        folder: searched for modules after the installed packages.

    Raises:
        RecipeError: there is no such module or function, or it cannot be a metric.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        self._folder = folder.resolve() if folder else None
        module, function = _split_name(name)
        with _importable(self._folder):
            self._function = self._load_function(module, function)
        self.higher_is_better = getattr(self._function, "higher_is_better", True)
        if not isinstance(self.higher_is_better, bool):
            raise RecipeError(
                f"`{name}` has higher_is_better = {self.higher_is_better!r}", hint="it is True, the default, or False"
            )
        _check_arguments(name, self._function)

    def __call__(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[float]:
        """Return one finite number a row; raise RecipeError where the function does not."""
        try:
            with _importable(self._folder):
                values = list(self._function(list(predictions), list(references)))
        except TunesmithError:  # from a function of ours that the metric calls
            raise
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"`{self.name}` raised {type(error).__name__}: {error}", where=_location_of(error), hint=_SIGNATURE_HINT
            ) from error
        if len(values) != len(predictions):
            raise RecipeError(
                f"`{self.name}` gave {len(values)} values for {len(predictions)} rows", hint=_SIGNATURE_HINT
            )
        return [self._to_finite_float(value, row) for row, value in enumerate(values)]

    def _to_finite_float(self, value: Any, row: int) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RecipeError(f"`{self.name}` gave {value!r} for row {row}, not a finite number", hint=_SIGNATURE_HINT)
        return number

    def _load_function(self, module: str, function: str) -> Callable[..., Any]:
        try:
            imported = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            known = missing is not None and f"{module}.".startswith(f"{missing}.")
            raise RecipeError(
                f"the metric `{self.name}` cannot be loaded: "
                + (f"there is no module `{missing}`" if known else f"importing `{module}` raised {error!r}"),
                where=None if known else _location_of(error),
                hint="modules are looked for in the installed packages and "
                + (f"in {self._folder}" if self._folder else "where Python looks"),
            ) from error
        beside = source_file(self.name, self._folder)
        came_from = getattr(imported, "__file__", None)
        if beside is not None and (came_from is None or Path(came_from).resolve() != beside.resolve()):
            raise RecipeError(
                f"`{module}` is the module {came_from or 'of Python itself'}, not {beside}", hint="rename your file"
            )
        found = getattr(imported, function, None)
        if not callable(found):
            told = "is not a function" if hasattr(imported, function) else "does not exist"
            raise RecipeError(f"`{function}` {told} in the module `{module}`", where=came_from, hint=_SIGNATURE_HINT)
        return found  # type: ignore[no-any-return]


def source_file(name: str, folder: Path | None) -> Path | None:
    """Return the file in `folder` that holds a metric, None where there is none and a package must have it."""
    return None if folder is None else _module_file(_split_name(name)[0], folder)


def source_files(name: str, folder: Path) -> list[Path]:
    """Return the files in `folder` that a metric of the user's own runs: its module, and those that it imports.

    A package counts with all its files. Empty if `name` is no such metric or a package of Python's has it.
    """
    found: dict[Path, None] = {}
    modules = [_split_name(name)[0]] if is_custom(name) else []
    while modules:
        module = modules.pop()
        top = folder / module.partition(".")[0]
        file = _module_file(top.name, folder) or _module_file(module, folder)
        if file is None or file in found:
            continue
        files = [file] if file.parent == folder else sorted(top.rglob("*"))
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                found[path] = None
                modules += _imported_modules(path)
    return list(found)


def _imported_modules(file: Path) -> list[str]:
    """Return the modules that a Python file names in its imports, wherever they stand; none if it is not Python."""
    if file.suffix != ".py":
        return []
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # importing it tells
        return []
    plain = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def _module_file(module: str, folder: Path) -> Path | None:
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _split_name(name: str) -> tuple[str, str]:
    module, _, function = name.rpartition(":" if ":" in name else ".")
    return module, function


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let modules of a folder be imported, last of all; forget them afterwards, so that no other run meets them.

    Their bytecode is not kept: Python takes it for current if a file was edited within a second at the same length.
    """
    if folder is None:
        yield
        return
    place = str(folder)
    before = set(sys.modules)
    dont_write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    sys.path.append(place)
    try:
        yield
    finally:
        sys.path.remove(place)
        sys.dont_write_bytecode = dont_write_bytecode
        for name in set(sys.modules) - before:
            if _module_file(name, folder) is not None:  # else it is a library, which cannot be imported twice
                del sys.modules[name]


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it will tell when it is called
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise RecipeError(f"`{name}` cannot be called with two lists: {error}", hint=_SIGNATURE_HINT) from None


def _location_of(error: BaseException) -> str | None:
    """Return file:line of where an error was raised, unless that is here."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return None if last is None or last.filename in (__file__, importlib.__file__) else f"{last.filename}:{last.lineno}"
