"""Failed trials: the recorded reason, and the exit code of the sweep."""

import signal
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.unit.sweep.conftest import MakeSweep, binary, finish

from tunesmith import run_sweep
from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import read_json, write_json
from tunesmith.sweep.collect import collect, failure_path
from tunesmith.sweep.run import describe_exit, run_trial, sweep_error


def test_failed_trial_records_its_reason_and_raises(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep()
    run = sweep.run(sweep.trials[1])
    (tmp_path / "rows.jsonl").write_text('{"question": "no answer"}\n', encoding="utf-8")
    with pytest.raises(DataError):
        run_trial(sweep.path, 2)
    assert read_json(failure_path(run))["exit_code"] == 3
    assert "answer" in read_json(failure_path(run))["reason"]
    assert collect(sweep).trials[1].state == "failed"


def test_unknown_trial_is_refused(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    for number in (0, 4):
        with raises(RecipeError, "no-such-trial", number, "1 to 3", where=str(sweep.path)):
            run_trial(sweep.path, number)


@pytest.mark.parametrize(("codes", "exit_code"), [([7], 7), ([7, 7], 7), ([7, 5], 1)])
def test_exit_code_is_that_of_the_trials_if_all_have_the_same(
    make_sweep: MakeSweep, codes: list[int], exit_code: int
) -> None:
    sweep = make_sweep()
    finish(sweep, sweep.trials[2], binary(10), binary(70))
    assert sweep_error(collect(sweep)) is None
    for trial, code in zip(sweep.trials, codes, strict=False):
        write_json(failure_path(sweep.run(trial)), {"exit_code": code, "reason": "step 3: nan"})
    error = sweep_error(collect(sweep))
    assert error is not None
    assert error.code == "trials-failed"
    assert error.exit_code == exit_code
    assert f"{len(codes)} of 3 trials failed: #1 rank 2" in str(error)


def test_reason_of_a_killed_process() -> None:
    for code, named in ((-signal.SIGKILL, "SIGKILL"), (-signal.SIGSEGV, "SIGSEGV"), (9, "exit code 9")):
        assert named in describe_exit(code)


def test_folder_of_a_sweep_takes_no_axes(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with raises(RecipeError, "usage", where=str(sweep.path)):
        run_sweep(sweep.path, over=["tuning.rank=2,8"])
