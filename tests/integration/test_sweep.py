"""Sweeps over tiny models: a failing trial, reused files, an interruption, and a killed process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe

from tunesmith.core.files import MANIFEST, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir

pytestmark = pytest.mark.slow
SETTINGS = {"learning_rate": 0.01, "epochs": 40, "max_steps": 30, "examples_per_step": 8, "valid_every_steps": 30}
TEXT = {"source": {"file": "rows.jsonl"}, "split": {"valid": 0.15, "test": 0.2}, "task": "text", "text": "{question}"}
LIKELIHOOD = {"metrics": ["perplexity", "exact_match"], "primary": "perplexity", "rows": 8, "max_new_tokens": 6}


def start(file: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep in a separate process, so that it alone gets signals."""
    command = [sys.executable, "-m", "tunesmith", "sweep", str(file), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_sweep(file: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a sweep; return its exit code, its result and its log."""
    process = start(file, *arguments, "--json")
    output, log = process.communicate(timeout=400)
    return process.returncode, json.loads(output) if output else {}, log


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    while not reached():
        assert process.poll() is None, "the sweep ended too early"
        time.sleep(0.005)


def steps_done(run: RunDir) -> int:
    return run.metrics.read_bytes().count(b'"kind": "step"') if run.metrics.exists() else 0


def mtime(run: RunDir, name: str) -> int:
    return (run.path / name).stat().st_mtime_ns


def test_sweep_with_a_failing_trial(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS, promote={"model": "tiny", "min_gain": -0.9})
    out = tmp_path / "sweep"
    code, result, log = run_sweep(file, "--over", "train.learning_rate=0.01,1e30,0.02", "--out", str(out))

    assert code == 7
    assert "1 of 3 trials failed: #2 learning_rate 1e30" in log
    assert [trial["state"] for trial in result["trials"]] == ["done", "failed", "done"]
    assert result["trials"][1]["failure"]["exit_code"] == 7
    assert "nan" in result["trials"][1]["failure"]["reason"]
    assert result["smallest"] in (1, 3)
    assert result["promote"] == f"tunesmith promote {out / result['trials'][result['smallest'] - 1]['folder']}"

    first, _, third = (RunDir(out / trial["folder"]) for trial in result["trials"])
    for name in ("prepare/rows.jsonl", "prepare/tokens/train.safetensors", "prepare/examples/test.jsonl"):
        assert os.path.samefile(first.path / name, third.path / name)
    # The answers of the base were copied before the trial was trained, and evaluation added none.
    answers = "evaluate/base/generations.jsonl"
    assert mtime(third, answers) < mtime(third, "train/" + MANIFEST) < mtime(third, "evaluate/" + MANIFEST)
    assert (first.path / answers).read_bytes() == (third.path / answers).read_bytes()
    assert log.count("answers of base ") == 1
    assert read_json(third.verdict)["digests"]["questions"] == read_json(first.verdict)["digests"]["questions"]

    # Each trial is an ordinary run, and none was promoted.
    for run in (first, third):
        assert run.report.exists()
        assert run.manifest("promote") is None
    assert not any(Path(os.environ["TUNESMITH_REGISTRY"]).rglob("*.safetensors"))
    assert (out / "sweep.html").stat().st_size > 10_000

    # The same command skips finished trials and tries the failed one again.
    before = {run: mtime(run, "evaluate/" + MANIFEST) for run in (first, third)}
    code, again, log = run_sweep(out)
    assert code == 7
    assert {run: mtime(run, "evaluate/" + MANIFEST) for run in (first, third)} == before
    assert again["trials"][0] == result["trials"][0]
    assert log.count("train: starts") == 1


def test_interrupted_sweep_resumes(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS | {"max_steps": 120, "valid_every_steps": 120})
    axes = (
        "--over",
        "tuning.rank=1,2,4",
        "--over",
        "train.learning_rate=0.01,0.02",
        "--out",
        str(tmp_path / "sweep"),
    )
    process = start(file, *axes)
    folder = tmp_path / "sweep"
    first, second = RunDir(folder / "01-rank-1_learning_rate-0.01"), RunDir(folder / "02-rank-1_learning_rate-0.02")
    wait_until(process, lambda: steps_done(second) >= 10)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=240)
    assert process.returncode == 75, log
    assert "Traceback" not in log
    assert first.manifest("evaluate") is not None
    assert second.manifest("train") is None
    [checkpoint] = second.checkpoints.glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) >= 10
    assert not (folder / "03-rank-2_learning_rate-0.01" / "train").exists()
    assert read_json(folder / "sweep.json")["trials"][1]["state"] == "to do"
    done = mtime(first, "train/" + MANIFEST)

    # One trial is enough here; a job array runs trials in this way.
    process = start(folder, "--trial", "2")
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    assert "resuming from step" in log
    steps = [line["step"] for line in read_jsonl(second.metrics) if line["kind"] == "step"]
    assert steps == list(range(1, 121))
    assert mtime(first, "train/" + MANIFEST) == done


def test_killed_trial_does_not_end_the_sweep(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, data=TEXT, evaluate=LIKELIHOOD, train=SETTINGS | {"max_steps": 60})
    out = tmp_path / "sweep"
    process = start(file, "--over", "tuning.rank=1,2", "--out", str(out), "--json")
    first = RunDir(out / "01-rank-1")
    wait_until(process, lambda: steps_done(first) >= 3)
    os.kill(int(first.lock.read_text().split()[1]), signal.SIGKILL)
    output, log = process.communicate(timeout=240)
    assert process.returncode == 1, log
    result = json.loads(output)
    assert [trial["state"] for trial in result["trials"]] == ["failed", "done"]
    assert "SIGKILL" in result["trials"][0]["failure"]["reason"]
    assert result["trials"][1]["measures"]["memory_gib"] > 0


def test_plan_of_a_sweep_runs_nothing(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS)
    code, plan, _ = run_sweep(file, "--over", "tuning.rank=2,8", "--plan", "--out", str(tmp_path / "sweep"))
    assert code == 0
    assert [trial["trained_parameters"] for trial in plan["trials"]] == [2048, 8192]
    assert {trial["state"] for trial in plan["trials"]} == {"to do"}
    assert not (tmp_path / "sweep").exists()
