"""A metric that scores 0 for any answer is reported before training."""

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.scoring.unscorable import check_scorable, unscorable_rows

SIGNS = "\U0001f600 :-) ..."


@pytest.mark.parametrize(
    ("metric", "references", "blind"),
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
def test_rows_without_anything_to_count(metric: str, references: list[str], blind: list[int]) -> None:
    assert unscorable_rows(metric, references) == blind


def test_few_are_a_warning_and_most_are_refused_if_the_metric_decides() -> None:
    few, most = ["yes"] * 8 + [SIGNS] * 2, [SIGNS] * 6 + ["yes"] * 4
    [warning] = check_scorable(["rougeL", "exact_match"], few, primary="rougeL", split="test")
    assert "2 of 10" in warning
    assert len(check_scorable(["rougeL", "exact_match"], most, primary="exact_match", split="test")) == 1
    with pytest.raises(RecipeError, match="6 of 10") as caught:
        check_scorable(["rougeL"], most, primary="rougeL", split="test")
    assert (caught.value.exit_code, caught.value.where) == (2, "evaluate.primary")
    assert "chrf" in str(caught.value.hint)
