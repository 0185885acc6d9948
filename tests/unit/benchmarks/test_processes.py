"""The speed that `plan` estimates for several processes, as the benchmark reads it."""

from pathlib import Path

import pytest
from benchmarks.versus.processes import Point, estimated_speed
from tests.support.tiny import recipe

from tunesmith.estimate.throughput import Speed, save_speed, speed_key
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.load import load_recipe


@pytest.mark.parametrize("processes", [1, 2])
def test_the_estimate_is_none_without_a_measured_speed_and_else_a_range(
    tmp_path: Path, tiny: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    loaded = load_recipe(recipe(tmp_path, tiny))
    point = Point("lora", processes, "none")
    assert estimated_speed(tmp_path, point, 1.0) is None
    save_speed(speed_key(resolve(str(tiny)).root.digest(), loaded), Speed(100.0, cores=1), alone=True)
    estimate = estimated_speed(tmp_path, point, 1.0)
    assert estimate is not None
    low, high = estimate
    assert 0 < low <= high <= 100.0 * processes
