"""docs/metrics.md and the reference of the recipe list every metric."""

import re

from tests.contract.sources import ROOT

from tunesmith.recipe.schema import Evaluate
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, METRIC_GROUPS, METRIC_NAMES, expand_metrics

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_lists_every_metric_and_no_other() -> None:
    first_cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell) if name != "rougeN"]
    assert sorted(listed) == sorted([*METRIC_NAMES, *METRIC_GROUPS, *LIKELIHOOD_METRICS])
    assert expand_metrics(listed)


def test_the_recipe_lists_every_metric() -> None:
    description = Evaluate.model_fields["metrics"].description or ""
    assert [
        name
        for name in (*METRIC_NAMES, *METRIC_GROUPS, *LIKELIHOOD_METRICS)
        if name not in re.findall(r"\w+", description)
    ] == []


def test_the_readme_links_the_page() -> None:
    assert "docs/metrics.md" in (ROOT / "README.md").read_text(encoding="utf-8")
