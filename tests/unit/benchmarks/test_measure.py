"""A measured process is watched from outside: its steps, its end, its failure, its time."""

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
    """Return where the worker `w.py` of a test is to be written."""
    monkeypatch.setattr(module, "WORKERS", tmp_path)
    return tmp_path / "w.py"


def write(worker: Path, body: str) -> None:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    worker.write_text(f"{HEAD}def work(job):\n{lines}\nprotocol.run(work)\n", encoding="utf-8")


def test_what_a_worker_did_and_said(worker: Path, tmp_path: Path) -> None:
    write(worker, f"{STEPS}\nprotocol.add_line(job, kind='loss', step=1, loss=2.5)\nreturn {{'is': job['told']}}")
    one = measure("w.py", {"told": 7}, tmp_path / "run")
    assert one.error is None
    assert one.tokens_per_second == 20.0
    assert one.steps[0]["loss"] == 2.5
    assert one.first_step_seconds is not None
    assert 0 < one.first_step_seconds <= one.seconds
    assert one.result["is"] == 7
    assert 0 < one.result["peak_rss_gib"] < 1


def test_a_failure_is_told_with_its_words(worker: Path, tmp_path: Path) -> None:
    write(worker, "raise ValueError('no bf16 here\\nand more')")
    one = measure("w.py", {}, tmp_path / "run")
    assert one.error == "ValueError: no bf16 here"
    assert one.tokens_per_second is None


def test_a_sudden_death_is_a_failure(worker: Path, tmp_path: Path) -> None:
    write(worker, "import os; print('last words', flush=True); os._exit(3)")
    assert measure("w.py", {}, tmp_path / "run").error == "died: last words"


def test_whoever_takes_too_long_is_stopped_and_its_steps_count(
    worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(worker, f"{STEPS}\ntime.sleep(600)")
    log = tmp_path / "run" / "log.jsonl"
    clock = SimpleNamespace(perf_counter=lambda: 9.0 if len(steps_in(log)) == 3 else 0.0, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)
    one = measure("w.py", {}, tmp_path / "run", limit_seconds=2)
    assert one.error == "was stopped after 2 s, 3 steps done"
    assert one.tokens_per_second == 20.0


def test_only_the_first_step_may_be_wanted(worker: Path, tmp_path: Path) -> None:
    write(worker, f"{STEPS}\ntime.sleep(600)")
    one = measure("w.py", {}, tmp_path / "run", first_step_only=True)
    assert one.error is None
    assert one.first_step_seconds is not None
    assert one.seconds < 600


def test_a_line_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "step", "step": 1, "seconds": 1, "tokens": 1}\n{"kind": "step", "st', encoding="utf-8")
    assert len(steps_in(log)) == 1
    assert steps_in(tmp_path / "none") == []


def test_peers_do_not_see_our_modules(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    write(worker, "import os; return {'path': os.environ.get('PYTHONPATH')}")
    assert measure("w.py", {}, tmp_path / "run", python=Path(sys.executable)).result["path"] is None
