"""Charts of the report as SVG."""

import re

from tunesmith.report.charts import loss_curves
from tunesmith.report.view import Training

WIDTH = 900.0


def test_every_validation_is_inside_the_axes() -> None:
    steps = tuple((step, 2.0 - 0.1 * step, 1e-3) for step in range(1, 13))
    valid = ((0, 2.1, 0.5), (6, 1.6, 0.6), (12, 0.9, 0.7))
    chart = str(loss_curves(Training(steps, valid, {}, {"best_step": 12, "best_value": 0.9}, {}), WIDTH))
    dots = [dot for dot in re.findall(r"<circle[^>]*>", chart) if 'class="valid-dot"' in dot]
    at = [float(re.findall(r'cx="([\d.-]+)"', dot)[0]) for dot in dots]
    assert len(at) == len(valid)
    assert at == sorted(at)
    assert (at[0], at[-1]) == (40.0, WIDTH - 12)
