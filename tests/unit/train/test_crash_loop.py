"""After two kills at the same step, a third attempt is refused, and the error names the rows of that step."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith import load_recipe
from tunesmith.core.errors import NonFinite, ProcessLost, TunesmithError
from tunesmith.core.files import read_json, write_text
from tunesmith.core.jsonl import json_line, write_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import batch_indices
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.train.crash_loop import record_attempt
from tunesmith.train.loop import Setup

ROWS = 20


class Killed(BaseException):
    """Simulates a kill: nothing catches it."""


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Recipe, RunDir]:
    file = recipe(tmp_path, tmp_path / "model", train={"learning_rate": 0.1, "examples_per_step": 4, "epochs": 2})
    run = RunDir(tmp_path / "run")
    for folder in (run.stage("prepare") / "examples", run.stage("train"), run.attempts.parent):
        folder.mkdir(parents=True)
    write_jsonl(run.examples("train"), [{"id": f"row{number}"} for number in range(ROWS)])
    write_jsonl(run.ledger, [{"id": f"row{number}", "where": f"rows.jsonl:{number + 1}"} for number in range(ROWS)])
    return load_recipe(file), run


def train(prepared: tuple[Recipe, RunDir], *, to: int, error: BaseException | None, saved: int = 0) -> None:
    """Attempt to train from checkpoint `saved` to step `to`, and end with an error."""
    loaded, run = prepared
    unused: Any = None
    tokens: Any = range(ROWS)
    setup = Setup(loaded, plan_steps(loaded, ROWS), unused, unused, tokens, 0, unused)
    with record_attempt(setup, run, first_step=saved):
        write_text(run.metrics, "".join(json_line({"kind": "step", "step": n + 1}) for n in range(to)))
        if error is not None:
            raise error


def test_third_attempt_after_two_kills_at_one_step_is_refused(prepared: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            train(prepared, to=6, error=Killed())
    with raises(TunesmithError, "crash-loop", "step 7") as caught:
        train(prepared, to=6, error=None)
    rows = batch_indices(6, rows=ROWS, examples_per_step=4, total_examples=40, seed=0)
    assert all(f"rows.jsonl:{row + 1}" in str(caught.value) for row in rows)
    assert str(caught.value).count("rows.jsonl:") == 4
    prepared[1].attempts.unlink()
    train(prepared, to=6, error=None)


def test_kills_before_the_first_step_count(prepared: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            train(prepared, to=0, error=Killed())
    with raises(TunesmithError, "crash-loop", "step 1,"):
        train(prepared, to=0, error=None)


def test_kills_at_different_steps_are_allowed(prepared: tuple[Recipe, RunDir]) -> None:
    for step in (3, 4, 3, 5):
        with pytest.raises(Killed):
            train(prepared, to=step, error=Killed(), saved=2)
    train(prepared, to=10, error=None)
    assert not prepared[1].attempts.exists()


def test_attempts_that_end_with_an_error_do_not_count(prepared: tuple[Recipe, RunDir]) -> None:
    for _ in range(3):
        with pytest.raises(NonFinite):
            train(prepared, to=6, error=NonFinite("is not finite"))
    assert not prepared[1].attempts.exists()


def test_attempts_that_lose_another_rank_count(prepared: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(ProcessLost):
            train(prepared, to=6, error=ProcessLost("is gone"))
    assert read_json(prepared[1].attempts) == {"killed_at": [7]}
    with raises(TunesmithError, "crash-loop", "step 7"):
        train(prepared, to=6, error=None)
