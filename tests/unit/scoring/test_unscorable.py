"""References that a metric cannot score are reported before training."""

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.scoring.unscorable import check_scorable, unscorable_rows

SIGNS = "\U0001f600 :-) ..."


@pytest.mark.parametrize(
    ("metric", "references", "rows"),
    [
        ("rougeL", ["yes", SIGNS, "\u043d\u0435\u0442", ""], [1, 3]),
        ("rouge2", ["yes", "yes and no", SIGNS], [0, 2]),
        ("rougeSU", ["yes", "yes and no"], [0]),
        ("rougeL", [[SIGNS, "yes"], [SIGNS, ""]], [1]),
        ("bleu", [SIGNS, ""], [1]),
        ("chrf", [SIGNS, "\u6211"], []),
        ("exact_match", ["", SIGNS], []),
        ("json_valid", ["no JSON"], []),
        ("mine:words", [""], []),
    ],
)
def test_unscorable_rows(metric: str, references: list[str], rows: list[int]) -> None:
    assert unscorable_rows(metric, references) == rows


def test_few_unscorable_rows_are_a_warning_and_many_an_error() -> None:
    few, many = ["yes"] * 8 + [SIGNS] * 2, [SIGNS] * 6 + ["yes"] * 4
    [warning] = check_scorable(["rougeL", "exact_match"], few, primary="rougeL", split="test")
    assert "2 of 10" in warning
    assert len(check_scorable(["rougeL", "exact_match"], many, primary="exact_match", split="test")) == 1
    with raises(RecipeError, "unscorable-references", "6 of 10", where="evaluate.primary") as error:
        check_scorable(["rougeL"], many, primary="rougeL", split="test")
    assert "chrf" in str(error.value.hint)
