"""The best is the best in its own direction, the first of equals, and never something that is no number."""

import math

import pytest

from tunesmith.train.choice import BestCheckpoint


@pytest.mark.parametrize(
    ("higher", "values", "best"),
    [
        (True, [0.1, 0.4, 0.3], 1),
        (False, [0.1, 0.4, 0.05], 2),
        (True, [0.4, 0.4, 0.1], 0),
        (False, [0.1, 0.1, 0.4], 0),
        (True, [-3.0, -2.0, -4.0], 1),
        (True, [0.0, 0.0], 0),
        (True, [0.1, math.inf, math.nan, None, 0.2], 4),
        (False, [5.0, -math.inf, math.nan, None, 4.0], 4),
        (True, [math.nan, None, math.inf], None),
        (False, [-math.inf, 7.0], 1),
    ],
)
def test_the_best_of_a_run(higher: bool, values: list[float | None], best: int | None) -> None:
    choice = BestCheckpoint("any", higher)
    found: tuple[int, float] | None = None
    for step, value in enumerate(values):
        if choice.prefers(value, found[1] if found else None):
            found = (step, float(value or 0))
    assert (found[0] if found else None) == best
