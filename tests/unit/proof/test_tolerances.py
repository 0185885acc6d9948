"""The limits of a proof by the type of the weights."""

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.proof.tolerances import tolerance_for, tolerance_for_bits


@pytest.mark.parametrize(
    ("type", "mean_kl", "max_gap"),
    [
        ("f32", 0.001, 0.05),
        ("F16", 0.001, 0.05),
        ("float32", 0.001, 0.05),
        ("bf16", 0.003, 0.2),
        ("q8_0", 0.02, None),
        ("Q6_K", 0.05, None),
        ("q5_1", 0.2, None),
        ("Q4_K_M", 0.2, None),
        ("iq4_XS", 0.2, None),
        ("mxfp4", 0.2, None),
        ("tq2_0", 0.2, None),
    ],
)
def test_each_type_has_limits(type: str, mean_kl: float, max_gap: float | None) -> None:
    found = tolerance_for(type)
    assert (found.mean_kl, found.max_gap) == (mean_kl, max_gap)


@pytest.mark.parametrize("type", ["", "q9_0", "f8", "16", "qf16", "q8_0 "])
def test_an_unknown_type_is_refused(type: str) -> None:
    with raises(RecipeError, "unknown-type"):
        tolerance_for(type)


def test_the_looser_of_two_need_not_give_equal_answers() -> None:
    assert tolerance_for("f16").looser(tolerance_for_bits(4)).max_gap is None
    assert tolerance_for("q4_0").looser(tolerance_for_bits(8)) == tolerance_for("q4_0")
