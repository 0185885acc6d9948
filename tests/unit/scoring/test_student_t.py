"""Quantiles of Student's t distribution."""

import pytest

from tunesmith.scoring.student_t import student_t_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (30, 2.0423), (1000, 1.9623)],
)
def test_student_t_agrees_with_published_tables(freedom: int, quantile: float) -> None:
    assert student_t_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)
