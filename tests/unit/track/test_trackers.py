"""Every tracker, the real one: what a run writes is in it, once, whatever happened on the way."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.verdicts import comparison, verdict
from tests.unit.track.read_back import READERS

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json, write_json, write_text
from tunesmith.core.jsonl import json_line
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.track.supervisor import TrackerSupervisor
from tunesmith.track.tracker import TRACKERS, check_installed
from tunesmith.track.tracker_process import _Log

SETTINGS = {"name": "tiny", "train": {"learning_rate": 0.01, "max_steps": None}, "trackers": ["wandb"], "seed": 3}
LONG = 280.0  # seconds for a tracker to finish, on a machine that is busy with other things


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": 8.0 / number, "learning_rate": 0.01, "trained_tokens": 7}


def valid(number: int) -> dict[str, Any]:
    found = {"kind": "valid", "step": number, "loss": 9.0 / (number + 1), "token_accuracy": 0.5}
    return {**found, "rougeL": 0.1 * number, "mine:words": 7.0}


def machine(number: int, time: float) -> dict[str, Any]:
    return {"kind": "machine", "step": number, "time": 1.7e9 + time, "memory_gib": 1.0 + time}


def write(run: RunDir, *lines: dict[str, Any]) -> None:
    write_text(run.metrics, "".join(map(json_line, lines)))


def add(run: RunDir, *lines: dict[str, Any]) -> None:
    with run.metrics.open("a", encoding="utf-8") as log:
        log.write("".join(map(json_line, lines)))


def judged(run: RunDir, gain: float = 0.25) -> None:
    change = {"base": 0.5, "tuned": 0.5 + gain, "gain": gain, "low": gain - 0.1, "high": gain + 0.1}
    write_json(run.verdict, verdict(comparison("rougeL", **change), comparison("mine:words", **change)).to_json())
    write_json(run.stage("train") / "manifest.json", {"steps": 4})
    write_json(run.stage("evaluate") / "manifest.json", {})
    write_text(run.report, "<html>the report</html>")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "tiny" / "abc")
    write_text(made.resolved_recipe, "name: tiny\n")
    return made


def followed(run: RunDir, *names: str, seconds: float = LONG) -> TrackerSupervisor:
    followers = TrackerSupervisor(names, run, SETTINGS, seconds_to_finish=seconds)
    followers.start()
    return followers


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_is_in_the_tracker(name: str, run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with followed(run, name):
        write(run, valid(0), step(1), machine(1, 0.0))
        add(run, step(2), valid(2), step(3), machine(3, 5.0), step(4), valid(4))
        judged(run)
    assert capsys.readouterr().err == ""
    points, known = READERS[name](run.track(name))
    assert points["train/loss"] == [(1, 8.0), (2, 4.0), (3, pytest.approx(8 / 3)), (4, 2.0)]
    assert points["valid/loss"] == [(0, 9.0), (2, 3.0), (4, pytest.approx(9 / 5))]
    assert points["valid/rougeL"] == [(0, 0.0), (2, pytest.approx(0.2)), (4, pytest.approx(0.4))]
    assert points["valid/mine.words"] == [(0, 7.0), (2, 7.0), (4, 7.0)]
    assert points["machine/memory_gib"] == [(1, 1.0), (3, 6.0)]
    assert points["verdict/rougeL/gain"] == [(4, 0.25)]
    assert points["verdict/better"] == [(4, 1.0)]
    assert points["verdict/mine.words/tuned"] == [(4, 0.75)]
    if "settings" in known:
        assert known["settings"]["train.learning_rate"] in (0.01, "0.01")
    assert "recipe.resolved.yaml" in str(known["artifacts"])
    assert "verdict.json" in str(known["artifacts"])
    if name == "mlflow":
        assert known["status"] == "FINISHED"
        assert known["artifacts"]["report.html"] == b"<html>the report</html>"
    names = {path.relative_to(run.path).parts[0] for path in run.path.rglob("*")}
    assert names == {"recipe.resolved.yaml", "train", "evaluate", "report.html", "track"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_goes_on_is_one_run_and_tells_no_step_twice(name: str, run: RunDir) -> None:
    with followed(run, name):
        write(run, valid(0), step(1), machine(1, 0.0), step(2), valid(2), step(3), machine(3, 5.0))
    if name == "mlflow":
        assert READERS[name](run.track(name))[1]["status"] == "KILLED"
    # Killed after step 3, it goes on from the checkpoint of step 2, and takes step 3 again.
    write(run, valid(0), step(1), machine(1, 0.0), step(2), valid(2))
    with followed(run, name):
        add(run, step(3), machine(3, 60.0), step(4), valid(4), machine(4, 65.0))
        judged(run)
    points, known = READERS[name](run.track(name))
    assert [number for number, _ in points["train/loss"]] == [1, 2, 3, 4]
    assert [number for number, _ in points["valid/loss"]] == [0, 2, 4]
    assert points["machine/memory_gib"] == [(1, 1.0), (3, 6.0), (3, 61.0), (4, 66.0)]
    assert len(known.get("ids", {1})) == 1


def test_a_tracker_that_is_added_later_gets_everything_and_then_no_more(run: RunDir) -> None:
    write(run, valid(0), step(1), step(2))
    judged(run)
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=LONG):
        pass
    assert [number for number, _ in READERS["tensorboard"](run.track("tensorboard"))[0]["train/loss"]] == [1, 2]
    files = sorted(run.track("tensorboard").iterdir())
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=LONG):
        pass
    assert sorted(run.track("tensorboard").iterdir()) == files
    judged(run, gain=0.125)  # evaluated again
    with TrackerSupervisor(["tensorboard"], run, SETTINGS, seconds_to_finish=LONG):
        pass
    assert READERS["tensorboard"](run.track("tensorboard"))[0]["verdict/rougeL/gain"] == [(4, 0.25), (4, 0.125)]


def test_a_run_that_is_killed_is_told_up_to_its_end(run: RunDir) -> None:
    write(run, step(1), step(2))
    program = (
        "import os, sys; from tunesmith.core.rundir import RunDir;"
        "from tunesmith.track.supervisor import TrackerSupervisor;"
        f"TrackerSupervisor(['tensorboard'], RunDir({str(run.path)!r}), {{}}, seconds_to_finish={LONG}).start();"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    folder = run.track("tensorboard")
    until = time.monotonic() + LONG
    while not (folder / "state.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    with exclusive_lock(folder / "lock", wait=True):  # it has ended
        pass
    assert [number for number, _ in READERS["tensorboard"](folder)[0]["train/loss"]] == [1, 2]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the tracker's package be one that misbehaves."""
    (folder / "trackio.py").write_text(f"import os, sys, time\n{code}\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )


@pytest.mark.parametrize(
    ("code", "told"),
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
def test_a_tracker_that_fails_is_dropped_and_named_once(
    code: str,
    told: str,
    run: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(tmp_path, monkeypatch, code)
    with followed(run, "trackio", "tensorboard"):
        write(run, step(1), step(2))
    said = capsys.readouterr().err
    assert said.count("track: trackio failed") == 1
    assert told in said
    assert "tensorboard" not in said
    assert len(READERS["tensorboard"](run.track("tensorboard"))[0]["train/loss"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    ["time.sleep(3600)", "__import__('ctypes').PyDLL(None).sleep(3600)"],
    ids=["waiting", "holding Python's lock"],
)
def test_a_tracker_that_hangs_does_not_keep_the_run(
    how: str, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, f"def init(**settings): {how}")
    with followed(run, "trackio", seconds=1.0) as followers:
        write(run, step(1))
    assert re.fullmatch(r"track: trackio .*did not finish in time.*holds everything\n", capsys.readouterr().err)
    assert followers._all is not None
    assert followers._all[0]._process.poll() is not None


def test_a_tracker_that_cannot_start_or_read_its_state_is_no_fault_of_the_run(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(run.path / "track" / "wandb", "a file where its folder should be")
    write_text(run.track("tensorboard") / "state.json", "{damaged")
    with TrackerSupervisor(["wandb", "tensorboard"], run, SETTINGS, seconds_to_finish=LONG):
        write(run, step(1))
    said = capsys.readouterr().err
    assert "track: wandb could not be started" in said
    assert "track: tensorboard failed (DamagedFile" in said


def test_lines_that_were_not_told_are_not_told_twice_either(run: RunDir, tmp_path: Path) -> None:
    """What was noted as told stays so, if the tracker dies in between: a gap is better than a double."""
    with followed(run, "tensorboard"):
        write(run, step(1), step(2))
    state = run.track("tensorboard") / "state.json"
    assert read_json(state)["last"] == {"step": 2}
    write_json(state, {**read_json(state), "last": {"step": 3}})
    with followed(run, "tensorboard"):
        add(run, step(3), step(4))
    points = READERS["tensorboard"](run.track("tensorboard"))[0]
    assert [number for number, _ in points["train/loss"]] == [1, 2, 4]


def test_a_log_is_read_on_where_it_grows_and_again_where_it_was_replaced(run: RunDir) -> None:
    log = _Log(run.metrics)
    assert log.new_lines() == []
    write(run, step(1), step(2), step(3))
    assert [line["step"] for line in log.new_lines()] == [1, 2, 3]
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "st')
    assert log.new_lines() == []
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('ep": 4}\n')
    assert log.new_lines() == [{"kind": "step", "step": 4}]
    write(run, step(1), step(2))  # a run that goes on from step 2 forgets what came after
    add(run, step(3))
    assert [line["step"] for line in log.new_lines()] == [1, 2, 3]


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(list(TRACKERS))
    monkeypatch.setitem(TRACKERS, "wandb", ("a_package_that_is_not_there",))
    with pytest.raises(RecipeError) as refused:
        check_installed(["trackio", "wandb"])
    assert "`wandb` needs a_package_that_is_not_there" in refused.value.message
    assert ".[wandb]" in (refused.value.hint or "")
    assert refused.value.where == "trackers"


def test_the_recipe_and_the_extras_know_the_same_trackers() -> None:
    import tomllib
    from typing import get_args

    from tests.contract.sources import ROOT

    from tunesmith.recipe.schema import Recipe

    [names, _] = get_args(Recipe.model_fields["trackers"].annotation)
    assert set(get_args(names)) == set(TRACKERS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, packages in TRACKERS.items():
        wanted = {one.partition(">")[0].replace("mlflow-skinny", "mlflow") for one in extras[name]}
        assert wanted == set(packages)
