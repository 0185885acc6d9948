"""`generate --file --out` continues after a kill or Ctrl-C: every finished answer is kept, and none is repeated."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.tuned import CHAT, tuned_model

ROWS = 600


def start(model: str, rows: Path, out: Path, *, tokens: int = 8) -> subprocess.Popen[bytes]:
    """Start a batch of answers in a separate process."""
    command = [sys.executable, "-m", "tunesmith", "generate", model, "--file", str(rows), "--out", str(out)]
    options = ["--max-new-tokens", str(tokens), "--temperature", "1", "--seed", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command + options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def write_rows(path: Path, count: int) -> Path:
    """Write rows of one column."""
    path.write_text("".join(json.dumps({"id": f"q{i}", "mr": f"{i} and {i % 7}"}) + "\n" for i in range(count)))
    return path


def lines_in(out: Path) -> int:
    """Return the number of finished answers."""
    return out.read_bytes().count(b"\n") if out.exists() else 0


def wait_for_answers(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Wait until some answers are finished."""
    while lines_in(out) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)


def test_killed_and_stopped_it_keeps_every_answer_and_repeats_none(tiny: Path, tmp_path: Path) -> None:
    model = tuned_model(tiny, tmp_path / "tuned", CHAT, precision="fp32")  # other batches, but the same answers
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    assert start(model, rows, whole).wait(300) == 0
    chance, kept = random.Random(0), b""
    for stop_after in (chance.randint(1, 250), chance.randint(300, 500)):
        process = start(model, rows, out)
        wait_for_answers(process, out, stop_after)
        last = stop_after >= 300
        process.send_signal(signal.SIGINT if last else signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == (75 if last else -signal.SIGKILL)
        assert (b"run the same command again" in said) == last
        content = out.read_bytes()
        assert content.startswith(kept)
        kept = content[: content.rfind(b"\n") + 1]
    assert start(model, rows, out).wait(300) == 0
    assert out.read_bytes().startswith(kept)
    assert sorted(out.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert len(out.read_text().splitlines()) == ROWS
