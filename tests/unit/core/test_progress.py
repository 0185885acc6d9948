"""Progress lines, and the time before the remaining time is shown."""

import io
import os
import sys

import pytest

from tunesmith.core import progress
from tunesmith.core.progress import Progress, format_duration, log


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("done", "seconds", "left"),
    [(1, 25.0, ""), (2, 60.0, ""), (30, 4.9, ""), (3, 15.0, "2m 25s left"), (8, 16.0, "48s left"), (32, 16.0, "")],
)
def test_the_remaining_time_is_shown_after_three_units_and_five_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str], done: int, seconds: float, left: str
) -> None:
    shown = Progress("answers", total=32, unit="rows")
    clock[0] += seconds
    shown.update(done)
    line = capsys.readouterr().err
    assert line.rstrip() == (f"answers {done}/32 rows" + (f"  {left}" if left else "") if line else "")
    assert bool(line) == (seconds >= 10 or done == 32)


def test_the_remaining_time_ignores_units_finished_before(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress("train", total=10, start=7)
    clock[0] += 60
    shown.update(8)
    assert capsys.readouterr().err == "train 8/10 steps\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0.0s"),
        (0.4, "0.4s"),
        (0.96, "1s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (200, "3m 20s"),
        (3600, "1h 00m"),
        (7500, "2h 05m"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_prints_lines_with_the_remaining_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("train", total=30, start=10)
    shown.update(11, "loss 1.0")
    clock[0] += 20  # one step in 20 s: too early to predict
    shown.update(11, "loss 1.0")
    shown.update(13, "loss 0.9")
    clock[0] += 10  # four steps in 30 s
    shown.update(14, "loss 0.9")
    shown.set_note("validating, 1 of 9 rows")  # too soon after the last line
    shown.update(30)
    shown.set_note("validating, 2 of 9 rows")
    clock[0] += 20
    shown.set_note("validating, 8 of 9 rows")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "train 11/30 steps  loss 1.0",
        "train 14/30 steps  loss 0.9  2m 00s left",
        "train 30/30 steps",
        "train 30/30 steps  validating, 8 of 9 rows",
    ]


def test_a_closed_stderr_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    broken = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    monkeypatch.setattr(sys, "stderr", broken)
    log("a line")
    shown = Progress("train", total=1)
    shown.update(1)
    shown.close()
    with pytest.raises(BrokenPipeError):
        print("a line", file=sys.stderr, flush=True)
