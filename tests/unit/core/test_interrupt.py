"""The first signal sets a flag, the second exits; the former handlers are restored."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.errors import raises

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]

# Works until a signal, and checks for it every `sys.argv[1]` hundredths of a second.
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
def start_work(pause: int, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """Start a process that checks the flag every `pause` hundredths of a second."""
    command = [sys.executable, "-c", WORK, str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_deferred_signals_are_raised_afterwards() -> None:
    with interrupt.catch_signals(patient=True):
        with interrupt.defer_signals():
            for _ in range(2):  # without `patient`, the second would exit
                signal.raise_signal(signal.SIGTERM)
            interrupt.check()
            assert interrupt.requested_signal() == signal.SIGTERM
        with raises(Interrupted, "interrupted", "SIGTERM"):
            interrupt.check()
    assert not interrupt.requested_signal()


@pytest.mark.parametrize("number", SIGNALS)
def test_check_raises_after_a_signal(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with interrupt.catch_signals():
        assert not interrupt.requested_signal()
        interrupt.check()
        signal.raise_signal(number)
        assert interrupt.requested_signal()
        for _ in range(2):
            with raises(Interrupted, "interrupted", number.name):
                interrupt.check()
    assert capfd.readouterr().err.count("\n") == 2
    assert not interrupt.requested_signal()
    interrupt.check()


def test_signal_handlers_are_restored() -> None:
    # Processes that a script starts in the background ignore SIGINT.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _check_restored_handlers()
    finally:
        signal.signal(signal.SIGINT, former)


def _check_restored_handlers() -> None:
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
def test_the_first_signal_stops_at_the_next_check(number: signal.Signals) -> None:
    with start_work(20) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "saved\n")
    assert err.strip()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_exits_at_once(second: signal.Signals) -> None:
    with start_work(100_000) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "\n"  # the first has arrived; two pending signals would count as one
        process.send_signal(second)
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + second, "")


def test_a_signal_works_with_a_closed_stderr() -> None:
    """Ctrl-C reaches every process of a pipe; with `2>&1 | tee`, the reader may exit first."""
    reader, writer = os.pipe()
    with start_work(5, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "saved\n")


def test_a_signal_during_a_write_to_stderr_is_safe() -> None:
    """A handler that wrote to `sys.stderr` would reenter the interrupted write."""
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


def test_catch_signals_works_in_another_thread() -> None:
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


def test_the_flag_is_set_soon_after_the_signal() -> None:
    with interrupt.catch_signals():
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGUSR1)
        while not interrupt.requested_signal():
            assert time.monotonic() - began < 60


def test_stop_when_requested_ends_after_a_signal() -> None:
    assert list(interrupt.stop_when_requested("abc")) == ["a", "b", "c"]
    with interrupt.catch_signals(), interrupt.defer_signals():
        seen = []
        for item in interrupt.stop_when_requested("abc"):
            seen.append(item)
            if item == "b":
                os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == ["a", "b"]
