"""A run that is killed anywhere resumes and ends with the bytes of an uninterrupted run."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith import run_recipe
from tunesmith.core.files import digest_file, read_json
from tunesmith.core.jsonl import read_whole_lines
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve

SETTINGS = {
    "learning_rate": 0.01,
    "epochs": 20,
    "max_steps": 60,
    "examples_per_step": 8,
    "save_every_steps": 5,
    "valid_every_steps": 10,
    "valid_metrics": ["chrf"],
    "valid_rows": 4,
    "select_best_by": "chrf",
}
LORA = {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}


def start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a run in a separate process."""
    command = [sys.executable, "-m", "tunesmith", "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_until(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
    """Wait for a condition; return False if the process ends first."""
    while not reached():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def steps_done(run: RunDir) -> int:
    """Return the number of steps in the log."""
    return run.metrics.read_bytes().count(b'"kind": "step"') if run.metrics.exists() else 0


def weights(run: RunDir) -> dict[str, str]:
    """Return the digests of the final model's files."""
    folder = resolve(f"run:{run.path}").path
    return {path.name: digest_file(path) for path in sorted(folder.iterdir())}


def validations(run: RunDir) -> list[object]:
    """Return the validations in the log, the digests of all answers, and the selected checkpoint."""
    lines = [line for line in read_whole_lines(run.metrics) if line["kind"] == "valid"]
    answers = sorted(run.valid_answers(0).parent.iterdir())
    manifest = run.manifest("train") or {}
    chosen = [manifest.get(key) for key in ("best_step", "chosen_by", "best_value")]
    return [lines, [(path.name, digest_file(path)) for path in answers], chosen]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [LORA, {"method": "full"}], ids=["lora", "full"])
def test_killed_three_times_the_weights_are_those_of_an_undisturbed_run(
    tmp_path: Path, tiny: Path, tuning: dict[str, object]
) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS, tuning=tuning)
    assert start(file, tmp_path / "whole").wait(240) == 0
    run = RunDir(tmp_path / "killed")
    kills = 0
    chance = random.Random(0)
    for after in (chance.randint(1, 12), chance.randint(20, 30), chance.randint(40, 60)):
        process = start(file, run.path)
        if wait_until(process, lambda after=after: steps_done(run) >= after):  # type: ignore[misc]
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert start(file, run.path).wait(240) == 0

    assert weights(run) == weights(RunDir(tmp_path / "whole"))
    assert validations(run) == validations(RunDir(tmp_path / "whole"))
    assert len(list(run.valid_answers(0).parent.iterdir())) == 7
    assert read_json(run.verdict)["primary"] == read_json(RunDir(tmp_path / "whole").verdict)["primary"]
    assert [p for p in run.path.rglob("*") if ".tmp-" in p.name or ".trash-" in p.name] == []


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_step_and_exits_75(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS | {"save_every_steps": 60, "valid_every_steps": 60})
    run = RunDir(tmp_path / "run")
    process = start(file, run.path)
    assert wait_until(process, lambda: steps_done(run) >= 7)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 75
    assert b"run the same command again" in said
    assert b"Traceback" not in said
    [kept] = run.checkpoints.glob("step-*")
    assert int(kept.name.removeprefix("step-")) >= 7
    assert run.manifest("train") is None
    assert start(file, run.path).wait(240) == 0
    assert run.manifest("evaluate") is not None


def test_a_damaged_checkpoint_is_skipped_and_reported(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, tiny, train=SETTINGS | {"max_steps": 20})
    whole = run_recipe(file, out=tmp_path / "whole", until="train")
    run = run_recipe(file, out=tmp_path / "run", until="train")
    (run.stage("train") / "manifest.json").unlink()
    victim = run.checkpoint(20) / "optimizer.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)
    run_recipe(file, out=tmp_path / "run", until="train")
    assert "skipping a damaged checkpoint" in capsys.readouterr().err
    assert weights(run) == weights(whole)
    assert validations(run) == validations(whole)
