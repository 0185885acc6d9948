"""Feed the real trackers: each has everything that a run wrote, once, also after crashes and resumes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.errors import raises
from tests.support.verdicts import comparison, verdict
from tests.unit.track.read_back import READERS

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json, write_json, write_text
from tunesmith.core.jsonl import json_line
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.track.supervisor import TrackerSupervisor
from tunesmith.track.tracker import TRACKERS, check_installed
from tunesmith.track.tracker_process import GrowingLog

SETTINGS = {"name": "tiny", "train": {"learning_rate": 0.01, "max_steps": None}, "trackers": ["wandb"], "seed": 3}
TIMEOUT = 280.0  # seconds for a tracker to finish on a busy machine


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": 8.0 / number, "learning_rate": 0.01, "trained_tokens": 7}


def valid(number: int) -> dict[str, Any]:
    line = {"kind": "valid", "step": number, "loss": 9.0 / (number + 1), "token_accuracy": 0.5}
    return {**line, "rougeL": 0.1 * number, "mine:words": 7.0}


def machine(number: int, time: float) -> dict[str, Any]:
    return {"kind": "machine", "step": number, "time": 1.7e9 + time, "memory_gib": 1.0 + time}


def write(run: RunDir, *lines: dict[str, Any]) -> None:
    """Replace the metrics of a run."""
    write_text(run.metrics, "".join(map(json_line, lines)))


def append(run: RunDir, *lines: dict[str, Any]) -> None:
    """Append to the metrics of a run."""
    with run.metrics.open("a", encoding="utf-8") as log:
        log.write("".join(map(json_line, lines)))


def evaluate(run: RunDir, gain: float = 0.25) -> None:
    """Write a verdict, the manifests of `train` and `evaluate`, and a report."""
    change = {"base": 0.5, "tuned": 0.5 + gain, "gain": gain, "low": gain - 0.1, "high": gain + 0.1}
    write_json(run.verdict, verdict(comparison("rougeL", **change), comparison("mine:words", **change)).to_json())
    write_json(run.stage("train") / "manifest.json", {"steps": 4})
    write_json(run.stage("evaluate") / "manifest.json", {})
    write_text(run.report, "<html>the report</html>")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "tiny" / "abc")
    write_text(run.resolved_recipe, "name: tiny\n")
    return run


def start(run: RunDir, *names: str, seconds: float = TIMEOUT) -> TrackerSupervisor:
    """Start trackers of a run."""
    supervisor = TrackerSupervisor(names, run, SETTINGS, seconds_to_finish=seconds)
    supervisor.start()
    return supervisor


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_tracker_has_metrics_verdict_and_files(name: str, run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with start(run, name):
        write(run, valid(0), step(1), machine(1, 0.0))
        append(run, step(2), valid(2), step(3), machine(3, 5.0), step(4), valid(4))
        evaluate(run)
    assert capsys.readouterr().err == ""
    points, stored = READERS[name](run.track(name))
    assert points["train/loss"] == [(1, 8.0), (2, 4.0), (3, pytest.approx(8 / 3)), (4, 2.0)]
    assert points["valid/loss"] == [(0, 9.0), (2, 3.0), (4, pytest.approx(9 / 5))]
    assert points["valid/rougeL"] == [(0, 0.0), (2, pytest.approx(0.2)), (4, pytest.approx(0.4))]
    assert points["valid/mine.words"] == [(0, 7.0), (2, 7.0), (4, 7.0)]
    assert points["machine/memory_gib"] == [(1, 1.0), (3, 6.0)]
    assert points["verdict/rougeL/gain"] == [(4, 0.25)]
    assert points["verdict/better"] == [(4, 1.0)]
    assert points["verdict/mine.words/tuned"] == [(4, 0.75)]
    if "settings" in stored:
        assert stored["settings"]["train.learning_rate"] in (0.01, "0.01")
    assert "recipe.resolved.yaml" in str(stored["artifacts"])
    assert "verdict.json" in str(stored["artifacts"])
    if name == "mlflow":
        assert stored["status"] == "FINISHED"
        assert stored["artifacts"]["report.html"] == b"<html>the report</html>"
    names = {path.relative_to(run.path).parts[0] for path in run.path.rglob("*")}
    assert names == {"recipe.resolved.yaml", "train", "evaluate", "report.html", "track"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_resumed_run_is_one_run_and_logs_no_step_twice(name: str, run: RunDir) -> None:
    with start(run, name):
        write(run, valid(0), step(1), machine(1, 0.0), step(2), valid(2), step(3), machine(3, 5.0))
    if name == "mlflow":
        assert READERS[name](run.track(name))[1]["status"] == "KILLED"
    # The run was killed after step 3; it resumes from the checkpoint of step 2 and repeats step 3.
    write(run, valid(0), step(1), machine(1, 0.0), step(2), valid(2))
    with start(run, name):
        append(run, step(3), machine(3, 60.0), step(4), valid(4), machine(4, 65.0))
        evaluate(run)
    points, stored = READERS[name](run.track(name))
    assert [number for number, _ in points["train/loss"]] == [1, 2, 3, 4]
    assert [number for number, _ in points["valid/loss"]] == [0, 2, 4]
    assert points["machine/memory_gib"] == [(1, 1.0), (3, 6.0), (3, 61.0), (4, 66.0)]
    assert len(stored.get("ids", {1})) == 1


def test_tracker_added_later_gets_everything_once(run: RunDir) -> None:
    write(run, valid(0), step(1), step(2))
    evaluate(run)
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=TIMEOUT):
        pass
    assert [number for number, _ in READERS["tensorboard"](run.track("tensorboard"))[0]["train/loss"]] == [1, 2]
    files = sorted(run.track("tensorboard").iterdir())
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=TIMEOUT):
        pass
    assert sorted(run.track("tensorboard").iterdir()) == files
    evaluate(run, gain=0.125)  # evaluated again
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=TIMEOUT):
        pass
    assert READERS["tensorboard"](run.track("tensorboard"))[0]["verdict/rougeL/gain"] == [(4, 0.25), (4, 0.125)]


def test_killed_run_is_logged_to_its_end(run: RunDir) -> None:
    write(run, step(1), step(2))
    program = (
        "import os, sys; from tunesmith.core.rundir import RunDir;"
        "from tunesmith.track.supervisor import TrackerSupervisor;"
        f"TrackerSupervisor(['tensorboard'], RunDir({str(run.path)!r}), {{}}, seconds_to_finish={TIMEOUT}).start();"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    folder = run.track("tensorboard")
    deadline = time.monotonic() + TIMEOUT
    while not (folder / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with exclusive_lock(folder / "lock", wait=True):  # the tracker has finished
        pass
    assert [number for number, _ in READERS["tensorboard"](folder)[0]["train/loss"]] == [1, 2]


def replace_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Replace trackio by a package that misbehaves."""
    (folder / "trackio.py").write_text(f"import os, sys, time\n{code}\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no such project')", "RuntimeError: no such project"),
        ("os.abort()", "exit code -6"),
        ("def init(**settings): sys.exit(0)", "SystemExit: 0"),
        (
            "class Run:\n    def log(self, values, step): raise OSError('connection refused')\n"
            "def init(**settings): return Run()",
            "OSError: connection refused",
        ),
    ],
)
def test_failing_tracker_is_dropped_and_reported_once(
    code: str,
    reason: str,
    run: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_trackio(tmp_path, monkeypatch, code)
    with start(run, "trackio", "tensorboard"):
        write(run, step(1), step(2))
    log = capsys.readouterr().err
    assert log.count("tracker trackio failed") == 1
    assert reason in log
    assert "tensorboard" not in log
    assert len(READERS["tensorboard"](run.track("tensorboard"))[0]["train/loss"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "hang",
    ["time.sleep(3600)", "__import__('ctypes').PyDLL(None).sleep(3600)"],
    ids=["waiting", "holding Python's lock"],
)
def test_hanging_tracker_is_killed(
    hang: str, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_trackio(tmp_path, monkeypatch, f"def init(**settings): {hang}")
    with start(run, "trackio", seconds=1.0):
        write(run, step(1))
    assert re.fullmatch(r"tracker trackio .*did not finish in time.*\n", capsys.readouterr().err)
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not any("tunesmith.track.tracker_process" in command for command in commands)


def test_tracker_that_cannot_start_or_read_its_state_is_dropped(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(run.path / "track" / "wandb", "a file where its folder should be")
    write_text(run.track("tensorboard") / "state.json", "{damaged")
    with TrackerSupervisor(["wandb", "tensorboard"], run, SETTINGS, seconds_to_finish=TIMEOUT):
        write(run, step(1))
    log = capsys.readouterr().err
    assert "tracker wandb could not be started" in log
    assert "tracker tensorboard failed (DamagedFile" in log


def test_lines_marked_as_logged_are_never_logged_again(run: RunDir, tmp_path: Path) -> None:
    """If a tracker crashes after a line was marked and before it was logged, a gap is better than a duplicate."""
    with start(run, "tensorboard"):
        write(run, step(1), step(2))
    state = run.track("tensorboard") / "state.json"
    assert read_json(state)["last"] == {"step": 2}
    write_json(state, {**read_json(state), "last": {"step": 3}})
    with start(run, "tensorboard"):
        append(run, step(3), step(4))
    points = READERS["tensorboard"](run.track("tensorboard"))[0]
    assert [number for number, _ in points["train/loss"]] == [1, 2, 4]


def test_growing_log_yields_new_lines_and_all_lines_of_a_replaced_file(run: RunDir) -> None:
    log = GrowingLog(run.metrics)
    assert log.new_lines() == []
    write(run, step(1), step(2), step(3))
    assert [line["step"] for line in log.new_lines()] == [1, 2, 3]
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "st')
    assert log.new_lines() == []
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('ep": 4}\n')
    assert log.new_lines() == [{"kind": "step", "step": 4}]
    write(run, step(1), step(2))  # a run resumed from step 2 drops the later lines
    append(run, step(3))
    assert [line["step"] for line in log.new_lines()] == [1, 2, 3]


def test_missing_tracker_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(list(TRACKERS))
    monkeypatch.setitem(TRACKERS, "wandb", ("a_package_that_is_not_there",))
    with raises(RecipeError, "missing-package", "wandb", "a_package_that_is_not_there", ".[wandb]", where="trackers"):
        check_installed(["trackio", "wandb"])


def test_recipe_and_extras_have_the_same_trackers() -> None:
    import tomllib
    from typing import get_args

    from tests.contract.sources import ROOT

    from tunesmith.recipe.schema import Recipe

    [names, _] = get_args(Recipe.model_fields["trackers"].annotation)
    assert set(get_args(names)) == set(TRACKERS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, packages in TRACKERS.items():
        extra = {requirement.partition(">")[0].replace("mlflow-skinny", "mlflow") for requirement in extras[name]}
        assert extra == set(packages)
