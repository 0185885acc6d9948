"""The recorded speed of a machine, scaled to another number of cores."""

from pathlib import Path

import pytest

from tunesmith.estimate.throughput import Speed, load_speed, save_generation_speed, save_speed


@pytest.mark.parametrize(("cores", "expected"), [(4, 100), (2, 50), (0.5, 12.5), (16, 100), (None, 100)])
def test_speed_falls_with_fewer_cores_and_does_not_rise_with_more(cores: float | None, expected: float) -> None:
    scaled = Speed(100, cores=4, update_seconds=1).with_cores(cores)
    assert (scaled.tokens_per_second, scaled.update_seconds) == (expected, 100 / expected)


def test_the_speed_of_a_gpu_does_not_depend_on_cores() -> None:
    assert Speed(100).with_cores(2) == Speed(100)


def test_the_update_takes_the_same_time_for_any_number_of_tokens() -> None:
    speed = Speed(100, cores=4, update_seconds=0.5)
    assert (speed.step_seconds(100), speed.step_seconds(200)) == (1.5, 2.5)
    assert speed.step_seconds(100, updated_share=0.5) == 1.25


def test_the_speed_of_a_process_group_is_recorded_only_if_none_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    for speed, alone, expected in ((1.0, False, 1.0), (2.0, False, 1.0), (3.0, True, 3.0), (4.0, False, 3.0)):
        save_speed("a key", Speed(speed, 2), alone=alone)
        assert load_speed("a key") == Speed(expected, 2)


def test_a_new_training_keeps_the_recorded_generation_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    save_generation_speed("a key", 20.0)
    assert load_speed("a key") is None, "never trained here"
    save_speed("a key", Speed(1.0, reading=3.0), alone=True)
    save_generation_speed("a key", 20.0)
    save_speed("a key", Speed(2.0), alone=True)
    assert load_speed("a key") == Speed(2.0, reading=3.0, writing=20.0)
