"""Filling templates from the cells of a row, and cells that cannot be used."""

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError
from tests.support.errors import row_problem

from tunesmith.tasks.base import (
    EmptyCell,
    MissingColumn,
    RowProblem,
    cell_text,
    fill_required,
    fill_single_column,
    fill_template,
)
from tunesmith.tasks.json_values import JsonNumber


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        (" a\n", " a\n"),
        (0, "0"),
        (-7, "-7"),
        (10**400, str(10**400)),
        (True, "true"),
        (False, "false"),
        (JsonNumber("12.50"), "12.50"),
        (JsonNumber("1e400"), "1e400"),
        (2.5, "2.5"),
        (3.0, "3.0"),
        (1e300, "1e+300"),
        (np.int64(4), "4"),
        (np.float32(0.5), "0.5"),
        (decimal.Decimal("1.10"), "1.10"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 1, 2), "2024-02-29 01:02:00"),
        ("nan", "nan"),
        ("None", "None"),
        ("{x}", "{x}"),
        ("\x00", "\x00"),
    ],
)
def test_scalars_become_text(value: Any, text: str) -> None:
    assert cell_text({"c": value}, "c") == text
    assert fill_template("<{c}>", {"c": value}) == f"<{text}>"


@pytest.mark.parametrize(
    ("value", "code", "named"),
    [
        *((value, "empty-cell", "") for value in (None, "", " \n\t\u00a0", math.nan)),
        *((value, "empty-cell", "") for value in (np.float32("nan"), decimal.Decimal("NaN"))),
        *((value, "wrong-cell", "infinite") for value in (math.inf, -math.inf)),
        *((value, "wrong-cell", "infinite") for value in (np.float16("-inf"), decimal.Decimal("Infinity"))),
        ([], "wrong-cell", "list"),
        (["x"], "wrong-cell", "list"),
        ({"x": 1}, "wrong-cell", "dict"),
        (("x",), "wrong-cell", "tuple"),
        (b"x", "wrong-cell", "bytes"),
        (np.zeros(3), "wrong-cell", "ndarray"),
        ({1}, "wrong-cell", "set"),
        (object(), "wrong-cell", "object"),
    ],
)
def test_empty_cells_and_other_types_are_row_problems(value: Any, code: str, named: str) -> None:
    for use in (cell_text, lambda row, column: fill_template(f"{{{column}}}", row)):
        with row_problem(code, "`c`", named):
            use({"c": value}, "c")


def test_missing_column_is_not_a_row_problem() -> None:
    with pytest.raises(MissingColumn) as caught:
        fill_template("{there} {gone}", {"there": "x"})
    assert caught.value.column == "gone"
    with pytest.raises(MissingColumn):
        cell_text({}, "c")


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())), st.text())
def test_values_are_never_read_as_templates(value: str, literal: str) -> None:
    row = {"a": value, "b": "{a}{{}}"}
    template = literal.replace("{", "{{").replace("}", "}}")
    assert fill_template(f"{template}{{a}}|{{b}}|{{a}}", row) == f"{literal}{value}|{{a}}{{{{}}}}|{value}"


def test_columns_may_have_any_name() -> None:
    assert fill_template("{0} {a b} {a-b} {class}", {"0": "x", "a b": "y", "a-b": "z", "class": 1}) == "x y z 1"
    assert fill_template("no {{column}}", {}) == "no {column}"


def test_attributes_of_values_cannot_be_reached() -> None:
    for row in ({"a": "x"}, {"a": {}}, {"a": []}):
        with pytest.raises(MissingColumn):
            fill_template("{a.__class__}", row)
    for template in ("{a[0]}", "{a.}", "{a..b}", "{.}"):
        with pytest.raises(PydanticCustomError) as caught:
            fill_template(template, {"a": "x"})
        assert caught.value.type == "wrong-template"


def test_paths_fill_templates() -> None:
    row = {"t": {"en": "x", "de": None}, "j": '{"price": 12.50, "all": [{"name": "y"}]}', "broken": '{"a": '}
    assert fill_template("{t.en} {j.price} {j.all.0.name}|{t.de?}{t.fr?}", row) == "x 12.50 y|"
    for template, column in (("{t.de}", "t.de"), ("{t.fr}", "t.fr"), ("{j.all.1.name}", "j.all.1.name")):
        with pytest.raises(EmptyCell) as empty:
            fill_template(template, row)
        assert empty.value.column == column
    for template in ("{broken.a}", "{broken.a?}"):
        with row_problem("wrong-cell", "`broken`", "JSON"):
            fill_template(template, row)
    with row_problem("wrong-cell", "`t`") as caught:
        fill_template("{t}", row)
    assert "{t.en}" in caught.value.hint


@pytest.mark.parametrize("empty", [{}, {"i": None}, {"i": ""}, {"i": " \n"}, {"i": math.nan}])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}\n{i?}", "A"),
        ("{i?}\n{a}", "A"),
        ("{i?}\n\n{a}", "A"),
        ("{a}\n\n{i?}\n\nAnswer:", "A\n\nAnswer:"),
        ("{a}\n{i?}\nAnswer:", "A\nAnswer:"),
        ("{a}\n\n{i?}", "A"),
        ("{a}\n\n\nInput: {i?}\n", "A\n\n\nInput: \n"),
        ("{a}{i?}", "A"),
        ("{i?} {i?}", ""),
        ("{a}\n{i?}{j?}\nx", "A\nJ\nx"),
        ("\n{a}\n\n", "\nA\n\n"),
    ],
)
def test_line_of_an_empty_optional_column_is_removed(template: str, text: str, empty: dict[str, Any]) -> None:
    assert fill_template(template, {"a": "A", "j": "J", **empty}) == text


def test_optional_column_with_a_value_is_filled_like_others() -> None:
    row = {"a": "A", "i": "x\n\ny", "n": 0}
    assert fill_template("{a}\n\n{i?}\n{n?}", row) == fill_template("{a}\n\n{i}\n{n}", row) == "A\n\nx\n\ny\n0"
    with row_problem("wrong-cell", "list"):
        fill_template("{a?}", {"a": ["x"]})
    with pytest.raises(EmptyCell):
        fill_template("{a}{i?}", {"a": "", "i": "x"})
    with row_problem("empty-cell", "{a?}"):
        fill_required("{a?}", {})


def test_single_column_template_is_filled_with_text() -> None:
    assert fill_single_column("Q: {q} again {q}", "{x}") == "Q: {x} again {x}"
    assert fill_single_column("{a} {b}", "text") == "text"
    assert fill_single_column(None, "text") == "text"


def test_row_problem_has_reason_and_detail() -> None:
    problem = RowProblem("is empty", "row 3")
    assert (problem.reason, problem.detail, str(problem)) == ("is empty", "row 3", "is empty: row 3")
    assert str(RowProblem("is empty")) == "is empty"
