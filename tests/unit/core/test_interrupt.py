"""One signal asks, a second one means it; whoever had the signals before has them again."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]

# Works until it is asked to stop, and then takes a while to get to a safe point.
WORK = """
import sys, time
from tunesmith.core import interrupt
from tunesmith.core.errors import TunesmithError
try:
    with interrupt.catch_signals():
        print("ready", flush=True)
        while True:
            for _ in range(int(sys.argv[1])):
                time.sleep(0.01)
            interrupt.check()
except TunesmithError as error:
    print("saved", flush=True)
    sys.exit(error.exit_code)
"""


@contextlib.contextmanager
def started(patience: int, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Start a process that looks at the flag after so many hundredths of a second, and again and again."""
    command = [sys.executable, "-c", WORK, str(patience)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_what_many_have_to_agree_upon_is_not_raised_by_one() -> None:
    with interrupt.catch_signals(patient=True):
        with interrupt.defer_signals():
            for _ in range(2):  # the second would end a process that is alone
                signal.raise_signal(signal.SIGTERM)
            interrupt.check()
            assert interrupt.requested_signal() == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGTERM"):
            interrupt.check()
    assert not interrupt.requested_signal()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_flag_that_check_raises(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with interrupt.catch_signals():
        assert not interrupt.requested_signal()
        interrupt.check()
        signal.raise_signal(number)
        assert interrupt.requested_signal()
        for _ in range(2):
            with pytest.raises(Interrupted, match=number.name) as caught:
                interrupt.check()
        assert caught.value.exit_code == 75
        assert "run the same command again" in str(caught.value)
    assert "again to exit at once" in capfd.readouterr().err
    assert not interrupt.requested_signal()
    interrupt.check()


def test_handlers_are_put_back_whatever_happens() -> None:
    # A process that a script started in the background has it ignored.
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _handlers_are_put_back()
    finally:
        signal.signal(signal.SIGINT, own)


def _handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interrupt.catch_signals():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(Interrupted), interrupt.catch_signals():
        _ = signal.raise_signal(signal.SIGINT) or interrupt.check()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_one_signal_stops_at_the_next_safe_point(number: signal.Signals) -> None:
    with started(20) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "saved\n")
    assert "stopping at the next safe point" in err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(second: signal.Signals) -> None:
    with started(100_000) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "\n"  # the first one has arrived: two that wait together are one
        process.send_signal(second)
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + second, "")


def test_a_signal_is_heard_although_nobody_reads_what_is_said() -> None:
    """Ctrl-C goes to every process of a pipe: with `| tee`, the reader is gone before the work has answered."""
    reader, writer = os.pipe()
    with started(5, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "saved\n")


def test_a_signal_in_the_middle_of_a_line_disturbs_nothing() -> None:
    """A handler that wrote to `sys.stderr` would meet the write that it interrupted."""
    code = """
import io, os, signal, sys
from tunesmith.core import interrupt

class Slow(io.RawIOBase):
    def writable(self):
        return True
    def write(self, data):
        if not interrupt.requested_signal():
            signal.raise_signal(signal.SIGINT)
        return os.write(1, data)

sys.stderr = io.TextIOWrapper(io.BufferedWriter(Slow()), write_through=True)
with interrupt.catch_signals():
    print("one line", file=sys.stderr, flush=True)
    sys.exit(75 if interrupt.requested_signal() else 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (75, "one line\n"), done.stderr


def test_another_thread_works_without_signals() -> None:
    seen: list[object] = []

    def work() -> None:
        try:
            with interrupt.catch_signals():
                interrupt.check()
                seen.append("worked")
        except ValueError as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["worked"]


def test_the_time_between_signal_and_flag_is_short() -> None:
    with interrupt.catch_signals():
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGUSR1)
        while not interrupt.requested_signal():
            assert time.monotonic() - began < 60


def test_work_is_left_where_a_signal_comes() -> None:
    assert list(interrupt.stop_when_requested("abc")) == ["a", "b", "c"]
    with interrupt.catch_signals(), interrupt.defer_signals():
        seen = []
        for one in interrupt.stop_when_requested("abc"):
            seen.append(one)
            if one == "b":
                os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == ["a", "b"]
