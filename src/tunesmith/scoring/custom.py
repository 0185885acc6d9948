"""Custom metrics: a function that the recipe names, as `package.module:function` or `package.module.function`.

The function takes two lists, predictions and references, and returns one number per row. Higher is better unless the
function has the attribute `higher_is_better = False`. A reference is a text, or a list of texts if a row has several.
A function with a parameter `rows` also gets the columns of each row, as a list of dicts.

Importing the function runs its module, so a recipe with a custom metric runs its author's code. Installed packages
have precedence over modules in `folder`, so that no module there can replace a library.
"""

import ast
import importlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")
_SIGNATURE_HINT = (
    "a metric takes the lists `predictions` and `references`, and `rows` if it needs the columns of the rows, and "
    "returns one number per row"
)


def is_custom(name: str) -> bool:
    """Return whether a name has the form of a custom metric: `module:function` or `module.function`."""
    return _NAME.fullmatch(name) is not None


def custom_metrics(names: Sequence[str], folder: Path | None = None) -> dict[str, "CustomMetric"]:
    """Import the custom metrics among `names`; raise RecipeError as `CustomMetric` does."""
    return {name: CustomMetric(name, folder) for name in names if is_custom(name)}


class CustomMetric:
    """Import and call a user's function as a metric.

    Args:
        name: `module:function` or `module.function`.
        folder: folder to search for modules after the installed packages.

    Raises:
        RecipeError: there is no such module or function, or the function is not a valid metric.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        self._folder = folder.resolve() if folder else None
        module, function = _split_name(name)
        with _importable(self._folder):
            self._function = self._load_function(module, function)
        self.higher_is_better = getattr(self._function, "higher_is_better", True)
        if not isinstance(self.higher_is_better, bool):
            hint = "set it to True or False"
            message = f"`{name}` has higher_is_better = {self.higher_is_better!r}"
            raise RecipeError(message, hint=hint, code="custom-metric-invalid")
        self.takes_rows = _check_arguments(name, self._function)

    def __call__(
        self,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        """Return one finite number per row.

        Args:
            rows: the columns of each row, for a function that takes them.

        Raises:
            RecipeError: the function fails, returns anything else, or takes `rows` and there are none.
        """
        if self.takes_rows and rows is None:
            message = f"`{self.name}` takes `rows`, the columns of each row, which were not given"
            raise RecipeError(message, hint="pass `rows`, one mapping per prediction", code="no-columns")
        columns = {"rows": [dict(row) for row in rows]} if self.takes_rows and rows is not None else {}
        try:
            with _importable(self._folder):
                values = list(self._function(list(predictions), list(references), **columns))
        except TunesmithError:  # the metric may call a function of tunesmith
            raise
        except (Exception, SystemExit) as error:
            problem = f"raised {type(error).__name__}: {error}"
            raise _error(self.name, problem, code="custom-metric-failed", where=_location_of(error)) from error
        if len(values) != len(predictions):
            problem = f"returned {len(values)} values for {len(predictions)} rows"
            raise _error(self.name, problem, code="custom-metric-failed")
        return [self._to_finite_float(value, row) for row, value in enumerate(values)]

    def _to_finite_float(self, value: Any, row: int) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            problem = f"returned {value!r} for row {row}, not a finite number"
            raise _error(self.name, problem, code="custom-metric-failed")
        return number

    def _load_function(self, module: str, function: str) -> Callable[..., Any]:
        try:
            imported = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            hint = f"modules are searched in the installed packages and {self._folder or 'on the path of Python'}"
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{module}.".startswith(f"{missing}."):
                message = f"`{self.name}` cannot be imported: there is no module `{missing}`"
                raise RecipeError(message, hint=hint, code="custom-metric-not-found") from error
            message, where = f"importing `{module}` raised {error!r}", _location_of(error)
            raise RecipeError(message, where=where, hint=hint, code="custom-metric-failed") from error
        own_file = _module_file(module, self._folder) if self._folder else None
        imported_file = getattr(imported, "__file__", None)
        if own_file is not None and (imported_file is None or Path(imported_file).resolve() != own_file.resolve()):
            message = f"`{module}` imports {imported_file or 'a built-in module of Python'}, not {own_file}"
            raise RecipeError(message, hint="rename your file", code="custom-metric-shadowed")
        metric = getattr(imported, function, None)
        if not callable(metric):
            exists = hasattr(imported, function)
            message = f"`{function}` {'is not a function' if exists else 'does not exist'} in the module `{module}`"
            code = "custom-metric-invalid" if exists else "custom-metric-not-found"
            raise RecipeError(message, where=imported_file, hint=_SIGNATURE_HINT, code=code)
        return metric  # type: ignore[no-any-return]


def _error(name: str, problem: str, *, code: str, where: str | None = None) -> RecipeError:
    return RecipeError(f"`{name}` {problem}", where=where, hint=_SIGNATURE_HINT, code=code)


def source_files(name: str, folder: Path) -> list[Path]:
    """Return the files in `folder` that a custom metric runs: its module and the modules that it imports.

    A package counts with all its files. Empty if `name` is not a custom metric, or if an installed package defines it.
    """
    collected: dict[Path, None] = {}
    modules = [_split_name(name)[0]] if is_custom(name) else []
    while modules:
        module = modules.pop()
        top = folder / module.partition(".")[0]
        file = _module_file(top.name, folder) or _module_file(module, folder)
        if file is None or file in collected:
            continue
        files = [file] if file.parent == folder else sorted(top.rglob("*"))
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                collected[path] = None
                modules += _imported_modules(path)
    return list(collected)


def _imported_modules(file: Path) -> list[str]:
    """Return the modules that a Python file imports anywhere; none if the file is not Python."""
    if file.suffix != ".py":
        return []
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # importing the file reports it
        return []
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def _module_file(module: str, folder: Path) -> Path | None:
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _split_name(name: str) -> tuple[str, str]:
    module, _, function = name.rpartition(":" if ":" in name else ".")
    return module, function


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Append a folder to Python's path, and remove its modules afterwards, so that other runs do not find them.

    No bytecode is written, because Python would reuse it after an edit within a second that keeps the file's length.
    """
    if folder is None:
        yield
        return
    entry = str(folder)
    before = set(sys.modules)
    dont_write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        sys.dont_write_bytecode = dont_write_bytecode
        for name in set(sys.modules) - before:
            if _module_file(name, folder) is not None:  # otherwise a library, which cannot be imported twice
                del sys.modules[name]


def _check_arguments(name: str, function: Callable[..., Any]) -> bool:
    """Return whether a function takes `rows`; raise RecipeError if it does not take two lists."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C; the call reports a wrong signature
        return False
    takes_rows = "rows" in signature.parameters
    try:
        signature.bind([], [], **({"rows": []} if takes_rows else {}))
    except TypeError as error:
        raise _error(name, f"cannot be called with two lists: {error}", code="custom-metric-invalid") from None
    return takes_rows


def _location_of(error: BaseException) -> str | None:
    """Return the file:line that raised an error, None if it is in this module or in importlib."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return None if last is None or last.filename in (__file__, importlib.__file__) else f"{last.filename}:{last.lineno}"
