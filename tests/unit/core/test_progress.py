"""Progress lines, and when it is too early to predict the time left."""

import pytest

from tunesmith.core import progress
from tunesmith.core.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("done", "seconds", "left"),
    [(1, 25.0, ""), (2, 60.0, ""), (30, 4.9, ""), (3, 5.0, "48s left"), (8, 16.0, "48s left"), (32, 16.0, "")],
)
def test_no_time_left_is_shown_after_one_unit_or_in_the_first_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str], done: int, seconds: float, left: str
) -> None:
    shown = Progress("answers", total=32, unit="rows")
    clock[0] += seconds
    shown.update(done)
    assert shown._time_left() == left
    capsys.readouterr()


def test_units_done_before_do_not_count(clock: list[float]) -> None:
    shown = Progress("train", total=10, start=7)
    clock[0] += 60
    shown.update(8)
    assert shown._time_left() == ""
