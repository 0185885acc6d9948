"""The speed that a plan counts with."""

from pathlib import Path

import pytest

from tunesmith.estimate.throughput import Speed, load_speed, save_speed


@pytest.mark.parametrize(("cores", "expected"), [(4, 100), (2, 50), (0.5, 12.5), (16, 100), (None, 100)])
def test_fewer_cores_are_slower_and_of_more_nobody_knows(cores: float | None, expected: float) -> None:
    found = Speed(100, cores=4, update_seconds=1).on(cores)
    assert (found.tokens_per_second, found.update_seconds) == (expected, 100 / expected)


def test_a_gpu_has_no_cores_to_count() -> None:
    assert Speed(100).on(2) == Speed(100)


def test_weights_are_moved_once_a_step_however_many_tokens_it_has() -> None:
    speed = Speed(100, cores=4, update_seconds=0.5)
    assert (speed.step_seconds(100), speed.step_seconds(200)) == (1.5, 2.5)
    assert speed.step_seconds(100, moved=0.5) == 1.25


def test_what_one_of_many_did_is_noted_where_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    for speed, alone, expected in ((1.0, False, 1.0), (2.0, False, 1.0), (3.0, True, 3.0), (4.0, False, 3.0)):
        save_speed("a model", "lora", Speed(speed, 2), alone=alone)
        assert load_speed("a model", "lora") == Speed(expected, 2)
