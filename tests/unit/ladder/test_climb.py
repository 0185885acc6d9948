"""How a rung that fails is told, and what the ladder ends with."""

import signal
from pathlib import Path

import pytest
from tests.unit.ladder.conftest import MakeLadder, binary, finish

from tunesmith import run_ladder
from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import read_json, write_json
from tunesmith.ladder.climb import _ended, failed, run_rung
from tunesmith.ladder.collect import collect, failure_path


def test_a_rung_says_why_it_failed_and_its_error_goes_on(make_ladder: MakeLadder, tmp_path: Path) -> None:
    ladder = make_ladder()
    run = ladder.run(ladder.rungs[1])
    (tmp_path / "rows.jsonl").write_text('{"question": "no answer"}\n', encoding="utf-8")
    with pytest.raises(DataError):
        run_rung(ladder.path, 2)
    assert read_json(failure_path(run))["exit_code"] == 3
    assert "answer" in read_json(failure_path(run))["reason"]
    assert collect(ladder).outcomes[1].state == "failed"


def test_a_rung_that_is_not_there(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    for number in (0, 4):
        with pytest.raises(RecipeError, match="1 to 3"):
            run_rung(ladder.path, number)


@pytest.mark.parametrize(("codes", "exit_code"), [([7], 7), ([7, 7], 7), ([7, 5], 1)])
def test_the_exit_code_is_that_of_the_rungs_if_they_agree(
    make_ladder: MakeLadder, codes: list[int], exit_code: int
) -> None:
    ladder = make_ladder()
    finish(ladder, ladder.rungs[2], binary(10), binary(70))
    assert failed(collect(ladder)) is None
    for rung, code in zip(ladder.rungs, codes, strict=False):
        write_json(failure_path(ladder.run(rung)), {"exit_code": code, "reason": "step 3: nan"})
    error = failed(collect(ladder))
    assert error is not None
    assert error.exit_code == exit_code
    assert f"{len(codes)} of 3 rungs failed: #1 rank 2" in str(error)


def test_a_process_that_could_not_say_why() -> None:
    assert _ended(-signal.SIGKILL) == (1, "was killed (SIGKILL), as systems do when memory runs out")
    assert _ended(-signal.SIGSEGV) == (1, "ended by SIGSEGV")
    assert _ended(9) == (1, "ended with exit code 9")


def test_a_ladder_folder_takes_no_axes(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    with pytest.raises(RecipeError, match="have no effect"):
        run_ladder(ladder.path, over=["tuning.rank=2,8"])
