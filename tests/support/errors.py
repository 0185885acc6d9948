"""Assert the type, code, place and values of an error, and not its wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tunesmith.core.errors import TunesmithError
from tunesmith.tasks.base import RowProblem


@contextmanager
def raises(
    kind: type[TunesmithError], code: str, *named: Any, where: str | None = None
) -> Iterator[pytest.ExceptionInfo[TunesmithError]]:
    """Expect an error of exactly this type and code.

    Args:
        named: values that the message, place or hint must contain as text, such as a key, a row or a limit.
        where: the end of the error's place, such as `recipe.yaml:3`.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert (type(error), error.code) == (kind, code), error
    for value in named:
        assert str(value) in str(error), f"{value!r} is not named in: {error}"
    if where is not None:
        assert (error.where or "").endswith(where), error


@contextmanager
def row_problem(code: str, *named: Any) -> Iterator[pytest.ExceptionInfo[RowProblem]]:
    """Expect a RowProblem with this code, whose text contains some values."""
    with pytest.raises(RowProblem) as caught:
        yield caught
    problem = caught.value
    assert problem.code == code, problem
    for value in named:
        assert str(value) in str(problem), f"{value!r} is not named in: {problem}"
