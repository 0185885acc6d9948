"""The plan warns of learning rates far from those that published runs use, by method, size and optimizer."""

from typing import Any

import pytest

from tunesmith.plan.advice import advice
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe

COUNTS = {"train": 100, "valid": 10, "test": 10}


def warnings(tuning: dict[str, Any], parameters: float, **train: Any) -> list[str]:
    recipe = Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": "text", "text": "t", "source": {"file": "x.csv"}},
        "tuning": tuning, "train": train, "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    })  # fmt: skip
    return list(advice(recipe, plan_steps(recipe, 100), COUNTS, round(parameters)))


@pytest.mark.parametrize(
    ("method", "parameters", "rate", "unusual"),
    [
        ("lora", 8e9, 2e-4, None), ("lora", 8e9, 1e-2, None), ("lora", 8e9, 2e-2, "high"), ("lora", 8e9, 5e-6, "low"),
        ("lora", 70e9, 2e-2, "high"), ("qlora", 8e9, 1e-4, None), ("qlora", 8e9, 1e-6, "low"),
        ("full", 8e9, 1e-5, None), ("full", 8e9, 2e-3, "high"), ("full", 8e9, 2e-7, "low"),
        ("full", 70e9, 3e-7, None), ("full", 70e9, 2e-3, "high"), ("full", 70e9, 1e-7, "low"),
    ],
)  # fmt: skip
def test_a_rate_far_from_the_usual_range_is_a_warning(
    method: str, parameters: float, rate: float, unusual: str | None
) -> None:
    found = warnings({"method": method}, parameters, learning_rate=rate)
    assert len(found) == (unusual is not None)
    assert all(f"{rate:g}" in warning and f"unusually {unusual}" in warning for warning in found)


def test_other_optimizers_have_no_usual_range() -> None:
    assert warnings({"method": "full"}, 8e9, learning_rate=1.0, optimizer="sgd") == []
    for optimizer in ("adamw_8bit", "muon"):
        assert len(warnings({"method": "full"}, 8e9, learning_rate=1.0, optimizer=optimizer)) == 1
