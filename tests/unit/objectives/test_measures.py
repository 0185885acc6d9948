"""Measures are shown with their label, and an objective refuses examples without the columns that it needs."""

import pytest
from tests.support.errors import raises
from tests.support.tokens import dataset_of

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Column, TokenizedExample
from tunesmith.objectives.base import Measure, Objective, require_columns
from tunesmith.objectives.sft import SFT

WEIGHT = Column("weight", "float64")


@pytest.mark.parametrize(
    ("is_share", "value", "text"), [(False, 1.23456, "token accuracy 1.2346"), (True, 0.5, "token accuracy 50.0%")]
)
def test_measure_formats_its_value_with_a_label(is_share: bool, value: float, text: str) -> None:
    measure = Measure("token_accuracy", lambda tokens: (0, 1), is_share=is_share)
    assert measure.format(value) == text


def test_objective_requires_its_columns() -> None:
    weighted = Objective("weighted", SFT.loss, SFT.divisor, SFT.measures, frozenset({WEIGHT}))
    plain = dataset_of([TokenizedExample("a", (5, 6), (False, True))])
    require_columns(SFT, plain)
    with raises(RecipeError, "examples-lack-columns", "weighted", "weight"):
        require_columns(weighted, plain)
    columns = {WEIGHT: (1.0, 2.0)}
    require_columns(weighted, dataset_of([TokenizedExample("a", (5, 6), (False, True), columns)]))
