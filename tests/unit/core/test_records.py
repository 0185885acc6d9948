"""Records come back from JSON as they were; a run can be moved; errors say what, where and what to do."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import errors, progress
from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import write_json
from tunesmith.core.progress import Progress, format_duration, log
from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir

turns = st.builds(Turn, st.sampled_from(["user", "assistant", "text"]), st.text(), st.booleans(),
                  st.lists(st.integers(0)).map(tuple))  # fmt: skip
examples = st.builds(Example, st.text(), st.integers(1), st.text(), st.lists(turns, max_size=4).map(tuple))


@given(examples)
def test_an_example_comes_back_from_json(example: Example) -> None:
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_a_turn_without_ids_has_none_in_json() -> None:
    assert Turn("text", "one", trained=True).to_json() == {"role": "text", "text": "one", "trained": True}


def test_exit_codes_are_those_of_the_contract() -> None:
    found = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert found == {
        "TunesmithError": 1, "RecipeError": 2, "DataError": 3, "VerdictRefused": 4, "DoesNotFit": 5, "DamagedFile": 6,
        "NonFinite": 7, "Interrupted": 75, "ProcessLost": 75,
    }  # fmt: skip
    assert all(issubclass(getattr(errors, name), TunesmithError) for name in found)


def test_an_error_says_where_what_and_what_to_do() -> None:
    assert str(TunesmithError("is wrong")) == "is wrong"
    assert str(TunesmithError("is wrong", where="x.yaml:3")) == "x.yaml:3: is wrong"
    assert str(TunesmithError("is wrong", hint="mend it")) == "is wrong\n  hint: mend it"


def test_a_run_is_found_and_can_be_moved(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a" / "run")
    with pytest.raises(RecipeError, match="not a run folder"):
        RunDir.existing(run.path)
    run.path.mkdir(parents=True)
    run.resolved_recipe.touch()
    write_json(run.environment, {"recipe_folder": ".."})
    assert RunDir.existing(run.path).recipe_folder.resolve() == tmp_path / "a"
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert RunDir.existing(tmp_path / "b" / "run").recipe_folder.resolve() == tmp_path / "b"


def test_a_manifest_is_none_until_it_is_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.manifest("train") is None
    write_json(run.stage("train") / "manifest.json", {"steps": 3})
    assert run.manifest("train") == {"steps": 3}
    (run.stage("train") / "manifest.json").write_text("{")
    with pytest.raises(DamagedFile):
        run.manifest("train")


def test_checkpoints_sort_by_name_as_by_step(tmp_path: Path) -> None:
    paths = [RunDir(tmp_path).checkpoint(step) for step in (1, 9, 10, 99, 1000, 123_456)]
    assert paths == sorted(paths)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (200, "3m 20s"), (3600, "1h 00m"), (7500, "2h 05m")],
)
def test_durations_are_told_as_people_read_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_is_lines_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("train", total=30, start=10)
    shown.update(11, "loss 1.0")
    now[0] += 20  # 20 s for 1 step: too little to predict from
    shown.update(11, "loss 1.0")
    shown.update(13, "loss 0.9")
    now[0] += 10  # 30 s for the 4 steps that this process took
    shown.update(14, "loss 0.9")
    shown.set_note("validating, 1 of 9 rows")  # too soon after the last line to print another
    shown.update(30)
    shown.set_note("validating, 2 of 9 rows")
    now[0] += 20
    shown.set_note("validating, 8 of 9 rows")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "train 11/30 steps  loss 1.0",
        "train 14/30 steps  loss 0.9  2m 00s left",
        "train 30/30 steps",
        "train 30/30 steps  validating, 8 of 9 rows",
    ]


def test_work_goes_on_when_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    broken = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    monkeypatch.setattr(sys, "stderr", broken)
    log("is anybody there?")
    shown = Progress("train", total=1)
    shown.update(1)
    shown.close()
    with pytest.raises(BrokenPipeError):
        print("nobody", file=sys.stderr, flush=True)
