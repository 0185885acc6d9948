"""`measure` runs a worker and returns its steps, result, failure and time."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.versus import measure as module
from benchmarks.versus.measure import measure, steps_in

PROTOCOL = Path(module.WORKERS)
HEAD = f"import sys; sys.path.insert(0, {str(PROTOCOL)!r}); import protocol, time\n"
STEPS = "for n in (1, 2, 3): protocol.add_line(job, kind='step', step=n, seconds=0.5, tokens=10, trained_tokens=1)"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path at which a test writes its worker."""
    monkeypatch.setattr(module, "WORKERS", tmp_path)
    return tmp_path / "w.py"


def write(worker: Path, body: str) -> None:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    worker.write_text(f"{HEAD}def work(job):\n{lines}\nprotocol.run(work)\n", encoding="utf-8")


def test_measure_returns_steps_losses_and_the_result(worker: Path, tmp_path: Path) -> None:
    write(worker, f"{STEPS}\nprotocol.add_line(job, kind='loss', step=1, loss=2.5)\nreturn {{'value': job['value']}}")
    measured = measure("w.py", {"value": 7}, tmp_path / "run")
    assert measured.error is None
    assert measured.tokens_per_second == 20.0
    assert measured.steps[0]["loss"] == 2.5
    assert measured.first_step_seconds is not None
    assert 0 < measured.first_step_seconds <= measured.seconds
    assert measured.result["value"] == 7
    assert 0 < measured.result["peak_rss_gib"] < 1


def test_an_exception_of_the_worker_is_the_error(worker: Path, tmp_path: Path) -> None:
    write(worker, "raise ValueError('no bf16 here\\nand more')")
    measured = measure("w.py", {}, tmp_path / "run")
    assert measured.error == "ValueError: no bf16 here"
    assert measured.tokens_per_second is None


def test_a_crash_is_an_error_with_the_last_output(worker: Path, tmp_path: Path) -> None:
    write(worker, "import os; print('last output', flush=True); os._exit(3)")
    assert "last output" in str(measure("w.py", {}, tmp_path / "run").error)


def test_a_worker_over_the_limit_is_stopped_and_its_steps_count(
    worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(worker, f"{STEPS}\ntime.sleep(600)")
    log = tmp_path / "run" / "log.jsonl"
    clock = SimpleNamespace(perf_counter=lambda: 9.0 if len(steps_in(log)) == 3 else 0.0, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)
    measured = measure("w.py", {}, tmp_path / "run", limit_seconds=2)
    assert "2 s" in str(measured.error)
    assert "3 steps" in str(measured.error)
    assert measured.tokens_per_second == 20.0


def test_first_step_only_stops_after_the_first_step(worker: Path, tmp_path: Path) -> None:
    write(worker, f"{STEPS}\ntime.sleep(600)")
    measured = measure("w.py", {}, tmp_path / "run", first_step_only=True)
    assert measured.error is None
    assert measured.first_step_seconds is not None
    assert measured.seconds < 600


def test_a_partial_line_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "step", "step": 1, "seconds": 1, "tokens": 1}\n{"kind": "step", "st', encoding="utf-8")
    assert len(steps_in(log)) == 1
    assert steps_in(tmp_path / "none") == []


def test_peers_run_without_our_pythonpath(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/absent")
    write(worker, "import os; return {'path': os.environ.get('PYTHONPATH')}")
    assert measure("w.py", {}, tmp_path / "run", python=Path(sys.executable)).result["path"] is None
