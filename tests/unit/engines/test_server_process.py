"""A server as a process: readiness, the log in its error, and that it never outlives us."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.server_process import ServerProcess, free_port

# Starts a child that ignores SIGTERM, as servers with worker processes do, and writes both process ids.
SERVER = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal, time; "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(100)"])
print("ids", os.getpid(), child.pid, flush=True)
time.sleep(100)
"""


def exists(process: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(processes: list[int], seconds: float = 20.0) -> bool:
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + seconds
    while any(map(exists, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(exists, processes))


def process_ids(text: str) -> list[int] | None:
    """Return the ids in the log of SERVER when both processes run."""
    lines = text.splitlines()
    ids = [line for line in lines if line.startswith("ids ")]
    return [int(word) for word in ids[0].split()[1:]] if ids and "ready" in lines else None


def test_a_server_is_ready_and_ends_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ServerProcess("server", [sys.executable, "-S", "-c", SERVER]) as server:
        ids = server.wait_until(lambda: process_ids(server.log_end()), 30)
        assert all(map(exists, ids))
        server.check()
    assert all_end(ids)
    assert list(tmp_path.iterdir()) == []


def test_a_server_answers_at_the_free_port() -> None:
    port = free_port()

    def asked() -> int | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
                return int(response.status)
        except OSError:
            return None

    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with ServerProcess("http.server", command) as server:
        assert server.wait_until(asked, 30) == 200


def test_a_server_that_exits_is_an_error_with_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = "import sys; print('start'); print('no such file: x', file=sys.stderr); sys.exit(3)"
    server = ServerProcess("server", [sys.executable, "-S", "-c", script])
    with raises(TunesmithError, "engine-exited", "code 3", "no such file: x", tmp_path, where="server"), server:
        server.wait_until(lambda: None, 30)
    (log,) = tmp_path.iterdir()
    assert "start" in log.read_text()


def test_a_server_that_is_never_ready_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]
    with raises(TunesmithError, "engine-exited", where="slow"), ServerProcess("slow", command) as server:
        server.wait_until(lambda: None, 0.2)


def test_a_server_killed_by_a_signal_has_the_exit_code_of_a_shell() -> None:
    with ServerProcess("server", ["sleep", "0"]) as server:
        assert server.wait() == 0
    with ServerProcess("server", ["sh", "-c", "kill -9 $$"]) as server:
        assert server.wait() == 137


def test_a_server_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom tunesmith.engines.server_process import ServerProcess\n"
        f"server = ServerProcess('server', [sys.executable, '-S', '-c', {SERVER!r}])\n"
        "while True:\n    print(server.log_end(), flush=True)\n    __import__('time').sleep(0.1)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as starter:
        assert starter.stdout is not None
        log = ""
        while (ids := process_ids(log)) is None:
            log += starter.stdout.readline().decode()
        assert all(map(exists, ids))
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        assert all_end(ids)


def test_variables_are_added_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    script = "import os, time; print('got', os.environ.get('TORCHDYNAMO_DISABLE'), os.environ['ADDED'], flush=True)"
    command = [sys.executable, "-S", "-c", f"{script}; time.sleep(100)"]
    with ServerProcess("server", command, environment={"TORCHDYNAMO_DISABLE": None, "ADDED": "2"}) as server:
        line = server.wait_until(lambda: next(iter(server.log_end().splitlines()), None), 30)
    assert line == "got None 2"
