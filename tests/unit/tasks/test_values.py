"""How a template takes its values from a row, and which cells hold none."""

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.tasks.base import (
    EmptyCell,
    JsonNumber,
    MissingColumn,
    RowProblem,
    cell_text,
    fill_required,
    fill_single_column,
    fill_template,
)


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
def test_what_is_one_value_is_text(value: Any, text: str) -> None:
    assert cell_text({"c": value}, "c") == text
    assert fill_template("<{c}>", {"c": value}) == f"<{text}>"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "cell `c` is empty"),
        ("", "cell `c` is empty"),
        (" \n\t\u00a0", "cell `c` is empty"),
        (math.nan, "cell `c` is empty"),
        (np.float32("nan"), "cell `c` is empty"),
        (decimal.Decimal("NaN"), "cell `c` is empty"),
        (math.inf, "cell `c` is infinite"),
        (-math.inf, "cell `c` is infinite"),
        (np.float16("-inf"), "cell `c` is infinite"),
        (decimal.Decimal("Infinity"), "cell `c` is infinite"),
        ([], "cell `c` holds a list, not text"),
        (["x"], "cell `c` holds a list, not text"),
        ({"x": 1}, "cell `c` holds a dict, not text"),
        (("x",), "cell `c` holds a tuple, not text"),
        (b"x", "cell `c` holds a bytes, not text"),
        (np.zeros(3), "cell `c` holds a ndarray, not text"),
        ({1}, "cell `c` holds a set, not text"),
        (object(), "cell `c` holds a object, not text"),
    ],
)
def test_what_is_no_text_is_a_problem_of_the_row(value: Any, reason: str) -> None:
    for use in (cell_text, lambda row, column: fill_template(f"{{{column}}}", row)):
        with pytest.raises(RowProblem) as caught:
            use({"c": value}, "c")
        assert caught.value.reason == reason


def test_a_column_that_is_missing_is_another_matter() -> None:
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
    for template in ("{a.__class__}", "{a[0]}"):
        with pytest.raises(ValueError, match="inside a column"):
            fill_template(template, {"a": "x"})


@pytest.mark.parametrize("nothing", [{}, {"i": None}, {"i": ""}, {"i": " \n"}, {"i": math.nan}])
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
def test_an_optional_column_may_be_empty_and_its_line_is_left_out(
    template: str, text: str, nothing: dict[str, Any]
) -> None:
    assert fill_template(template, {"a": "A", "j": "J", **nothing}) == text


def test_an_optional_column_that_holds_something_is_written_as_any_other() -> None:
    row = {"a": "A", "i": "x\n\ny", "n": 0}
    assert fill_template("{a}\n\n{i?}\n{n?}", row) == fill_template("{a}\n\n{i}\n{n}", row) == "A\n\nx\n\ny\n0"
    with pytest.raises(RowProblem, match="holds a list"):
        fill_template("{a?}", {"a": ["x"]})
    with pytest.raises(EmptyCell):
        fill_template("{a}{i?}", {"a": "", "i": "x"})
    with pytest.raises(RowProblem, match="nothing is left"):
        fill_required("{a?}", {})


def test_asking_fills_a_template_of_one_column_only() -> None:
    assert fill_single_column("Q: {q} again {q}", "{x}") == "Q: {x} again {x}"
    assert fill_single_column("{a} {b}", "text") == "text"
    assert fill_single_column(None, "text") == "text"


def test_a_problem_is_counted_by_its_reason() -> None:
    problem = RowProblem("is empty", "row 3")
    assert (problem.reason, problem.detail, str(problem)) == ("is empty", "row 3", "is empty: row 3")
    assert str(RowProblem("is empty")) == "is empty"
