"""The recipe's filters: which rows are left out, and in which words the ledger says why."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import regex

from tunesmith.core.errors import DataError
from tunesmith.data.sources import Row
from tunesmith.recipe.data_source import Filter, Scalar
from tunesmith.tasks.base import RowProblem, format_value

# Patterns such as (a+)+b can take longer than the world is old; an honest one needs milliseconds.
_SECONDS_PER_CELL = 1.0


def rejection_reason(filters: Sequence[Filter], row: Row) -> str | None:
    """Return what is wrong with a row by the first rule that it breaks; None if it keeps all.

    A column that the row lacks is empty in it.

    Raises:
        RowProblem: the cell is of a type that the rule cannot be asked about.
        DataError: a pattern does not come to an end.
    """
    for rule in filters:
        found = next(_broken(rule, row.values.get(rule.column), row.where), None)
        if found is not None:
            return f"`{rule.column}` {found}"
    return None


def _broken(rule: Filter, cell: Any, where: str) -> Iterator[str]:
    """Yield what is wrong with a cell."""
    text = _text(cell, rule.column)
    if rule.equals is not None and not _same(cell, rule.equals):
        yield f"is not {rule.equals!r}"
    if rule.not_equals is not None and _same(cell, rule.not_equals):
        yield f"is {rule.not_equals!r}"
    if rule.one_of is not None and not any(_same(cell, one) for one in rule.one_of):
        yield f"is not one of {', '.join(map(repr, rule.one_of))}"
    if rule.matches is not None and not _found(rule.matches, text, where):
        yield f"does not match {rule.matches!r}"
    if rule.not_matches is not None and _found(rule.not_matches, text, where):
        yield f"matches {rule.not_matches!r}"
    if rule.min is not None or rule.max is not None:
        yield from _out_of_range(rule, cell, text)
    if rule.min_characters is not None and len(text) < rule.min_characters:
        yield f"has fewer than {rule.min_characters} characters"
    if rule.max_characters is not None and len(text) > rule.max_characters:
        yield f"has more than {rule.max_characters} characters"


def _text(cell: Any, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Mapping | list | tuple | bytes):
        raise RowProblem(f"cell `{column}` holds a {type(cell).__name__}, which no filter can be asked about")
    return format_value(cell)


def _same(cell: Any, wanted: Scalar) -> bool:
    """Say whether a cell is what a rule names; the cells of CSV are texts, whatever they mean."""
    if isinstance(wanted, str):
        return ("" if cell is None else format_value(cell)) == wanted
    if isinstance(wanted, bool):
        return cell is wanted or (isinstance(cell, str) and cell.strip().lower() == str(wanted).lower())
    return not isinstance(cell, bool) and _number(cell) == wanted


def _out_of_range(rule: Filter, cell: Any, text: str) -> Iterator[str]:
    if not text.strip():
        yield "is empty"
        return
    number = None if isinstance(cell, bool) else _number(cell)
    if number is None or number != number:
        raise RowProblem(f"cell `{rule.column}` holds no number", repr(text[:80]))
    if rule.min is not None and number < rule.min:
        yield f"is below {rule.min:g}"
    if rule.max is not None and number > rule.max:
        yield f"is above {rule.max:g}"


def _number(cell: Any) -> int | float | None:
    """Return the number that a cell holds, whole ones exactly; None if it holds none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(str(cell)) if isinstance(cell, str | Number) else None
    return None


def _found(pattern: str, text: str, where: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=_SECONDS_PER_CELL) is not None
    except TimeoutError as error:
        raise DataError(
            f"the pattern {pattern!r} did not come to an end within {_SECONDS_PER_CELL:g} s",
            where=where,
            hint="repeat nothing that is repeated already: (a+)+ is slow where a+ is not",
        ) from error
