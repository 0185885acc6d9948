"""Apply the recipe's filters, and explain in the ledger why a row was filtered."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import regex

from tunesmith.core.errors import DataError
from tunesmith.data.sources import Row
from tunesmith.recipe.data_source import Filter, Scalar
from tunesmith.tasks.base import RowProblem, format_value, optional_cell_value

# A pattern such as (a+)+b may backtrack almost forever; a sensible pattern takes milliseconds.
_SECONDS_PER_CELL = 1.0


def rejection_reason(filters: Sequence[Filter], row: Row) -> str | None:
    """Return the reason of the first filter that rejects a row; None if no filter does.

    A column that the row lacks counts as empty.

    Raises:
        RowProblem: the filter does not apply to the type of the cell, or its path leads into text that is not JSON.
        DataError: a pattern takes too long.
    """
    for rule in filters:
        violation = next(_violations(rule, optional_cell_value(row.values, rule.column), row.where), None)
        if violation is not None:
            return f"`{rule.column}` {violation}"
    return None


def _violations(rule: Filter, cell: Any, where: str) -> Iterator[str]:
    """Yield a description of each condition of a filter that a cell does not meet."""
    text = _text(cell, rule.column)
    if rule.equals is not None and not _equals(cell, rule.equals):
        yield f"is not {rule.equals!r}"
    if rule.not_equals is not None and _equals(cell, rule.not_equals):
        yield f"is {rule.not_equals!r}"
    if rule.one_of is not None and not any(_equals(cell, value) for value in rule.one_of):
        yield f"is not one of {', '.join(map(repr, rule.one_of))}"
    if rule.matches is not None and not _matches(rule.matches, text, where):
        yield f"does not match {rule.matches!r}"
    if rule.not_matches is not None and _matches(rule.not_matches, text, where):
        yield f"matches {rule.not_matches!r}"
    if rule.min is not None or rule.max is not None:
        yield from _range_violations(rule, cell, text)
    if rule.min_characters is not None and len(text) < rule.min_characters:
        yield f"has fewer than {rule.min_characters} characters"
    if rule.max_characters is not None and len(text) > rule.max_characters:
        yield f"has more than {rule.max_characters} characters"


def _text(cell: Any, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Mapping | list | tuple | bytes):
        raise RowProblem(f"cell `{column}` is a {type(cell).__name__}, to which no filter applies", code="wrong-cell")
    return format_value(cell)


def _equals(cell: Any, value: Scalar) -> bool:
    """Return whether a cell equals a filter's value; a cell of CSV is text, also if the value is not."""
    if isinstance(value, str):
        return ("" if cell is None else format_value(cell)) == value
    if isinstance(value, bool):
        return cell is value or (isinstance(cell, str) and cell.strip().lower() == str(value).lower())
    return not isinstance(cell, bool) and _number(cell) == value


def _range_violations(rule: Filter, cell: Any, text: str) -> Iterator[str]:
    if not text.strip():
        yield "is empty"
        return
    number = None if isinstance(cell, bool) else _number(cell)
    if number is None or number != number:
        raise RowProblem(f"cell `{rule.column}` is not a number", repr(text[:80]), code="wrong-cell")
    if rule.min is not None and number < rule.min:
        yield f"is below {rule.min:g}"
    if rule.max is not None and number > rule.max:
        yield f"is above {rule.max:g}"


def _number(cell: Any) -> int | float | None:
    """Return the number in a cell, exact if it is an integer; None if there is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(str(cell)) if isinstance(cell, str | Number) else None
    return None


def _matches(pattern: str, text: str, where: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=_SECONDS_PER_CELL) is not None
    except TimeoutError as error:
        problem = f"the pattern {pattern!r} took longer than {_SECONDS_PER_CELL:g} s"
        hint = "avoid nested repetition: (a+)+ is slow, a+ is not"
        raise DataError(problem, where=where, hint=hint, code="slow-pattern") from error
