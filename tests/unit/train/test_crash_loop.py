"""Training that is killed twice at one step is not tried a third time, and the rows of that step are named."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith import load_recipe
from tunesmith.core.errors import NonFinite, ProcessLost, TunesmithError
from tunesmith.core.files import read_json, write_text
from tunesmith.core.jsonl import json_line, write_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import batch_indices
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.recipe.schema import Recipe
from tunesmith.train.crash_loop import record_attempt

ROWS = 20


class Killed(BaseException):
    """What leaves no process alive to tidy up."""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Recipe, RunDir]:
    file = recipe(tmp_path, tmp_path / "model", train={"learning_rate": 0.1, "examples_per_step": 4, "epochs": 2})
    run = RunDir(tmp_path / "run")
    for folder in (run.stage("prepare") / "examples", run.stage("train"), run.attempts.parent):
        folder.mkdir(parents=True)
    write_jsonl(run.examples("train"), [{"id": f"row{number}"} for number in range(ROWS)])
    write_jsonl(run.ledger, [{"id": f"row{number}", "where": f"rows.jsonl:{number + 1}"} for number in range(ROWS)])
    return load_recipe(file), run


def train(made: tuple[Recipe, RunDir], *, to: int, error: BaseException | None, saved: int = 0) -> None:
    """Go on from a checkpoint to a step, and end there."""
    loaded, run = made
    with record_attempt(loaded, run, ProcessGroup(), first_step=saved):
        write_text(run.metrics, "".join(json_line({"kind": "step", "step": n + 1}) for n in range(to)))
        if error is not None:
            raise error


def test_twice_at_one_step_is_enough(made: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            train(made, to=6, error=Killed())
    with pytest.raises(TunesmithError, match="killed twice at step 7") as error:
        train(made, to=6, error=None)
    rows = batch_indices(6, rows=ROWS, examples_per_step=4, total_examples=40, seed=0)
    assert all(f"rows.jsonl:{row + 1}" in str(error.value) for row in rows)
    assert str(error.value).count("rows.jsonl:") == 4
    made[1].attempts.unlink()
    train(made, to=6, error=None)


def test_before_the_first_step_too(made: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            train(made, to=0, error=Killed())
    with pytest.raises(TunesmithError, match="killed twice at step 1,"):
        train(made, to=0, error=None)


def test_progress_between_two_is_enough_to_go_on(made: tuple[Recipe, RunDir]) -> None:
    for step in (3, 4, 3, 5):
        with pytest.raises(Killed):
            train(made, to=step, error=Killed(), saved=2)
    train(made, to=10, error=None)
    assert not made[1].attempts.exists()


def test_an_end_with_a_reason_does_not_count(made: tuple[Recipe, RunDir]) -> None:
    for _ in range(3):
        with pytest.raises(NonFinite):
            train(made, to=6, error=NonFinite("is not finite"))
    assert not made[1].attempts.exists()


def test_the_loss_of_another_process_counts(made: tuple[Recipe, RunDir]) -> None:
    for _ in range(2):
        with pytest.raises(ProcessLost):
            train(made, to=6, error=ProcessLost("is gone"))
    assert read_json(made[1].attempts) == {"killed_at": [7]}
    with pytest.raises(TunesmithError, match="killed twice at step 7"):
        train(made, to=6, error=None)
