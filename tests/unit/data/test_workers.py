"""Several processes examine rows as one does: the same parcels in the same order, and none is left behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError
from tunesmith.data import workers
from tunesmith.data.sources import Row
from tunesmith.data.workers import process_in_parallel
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe, Split
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.chatml import load_tokenizer

COUNT = 300
ASKS = """
import sys, time
from pathlib import Path
from tunesmith.data import workers
from tunesmith.data.sources import Row
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import load_tokenizer

print("here", flush=True)
workers.ALONE, workers.cores = 10, lambda: 2
made, model = load_recipe(Path(sys.argv[1])), ModelFolder("tiny", Path(sys.argv[2]))
rows = (Row(i, f"x:{i}", {"question": f"what is {i}?", "answer": f"it is {i}"}, "x") for i in range(1, 300))
for parcel in workers.process_in_parallel(made, task_for(made.data, load_tokenizer(model)), model, rows):
    if parcel.entry.row == 50:
        print("there", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SERIAL_ROWS", 10)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)


@pytest.fixture
def model(tokenizer_folder: Path) -> ModelFolder:
    return ModelFolder("tiny", tokenizer_folder)


@pytest.fixture
def given(tmp_path: Path, model: ModelFolder) -> tuple[Recipe, Task]:
    made = load_recipe(write_recipe(tmp_path, model.path))
    return made, task_for(made.data, load_tokenizer(model))


def rows(*, split: int | None = None) -> Iterator[Row]:
    for i in range(1, COUNT + 1):
        values = {"question": f"what is {i}?", "answer": f"it is {i}" if i % 7 else "", "fold": "train"}
        if i == split:
            values["fold"] = "nowhere"
        yield Row(i, f"x:{i}", values, "x")


def test_parcels_are_the_same_and_in_order(few: None, given: tuple[Recipe, Task], model: ModelFolder) -> None:
    alone = list(process_in_parallel(*given, None, rows()))
    many = list(process_in_parallel(*given, model, rows()))
    assert many == alone
    assert [parcel.entry.row for parcel in many] == list(range(1, COUNT + 1))
    assert {parcel.entry.status for parcel in many} == {"kept", "dropped"}
    assert helpers() == []


def test_what_is_wrong_with_a_row_is_told_as_by_one(few: None, given: tuple[Recipe, Task], model: ModelFolder) -> None:
    recipe = given[0]
    fold = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": Split(column="fold")})})
    with pytest.raises(DataError) as by_many:
        list(process_in_parallel(fold, given[1], model, rows(split=200)))
    with pytest.raises(DataError) as by_one:
        list(process_in_parallel(fold, given[1], None, rows(split=200)))
    assert str(by_many.value) == str(by_one.value)
    assert str(by_one.value).startswith("x:200: column `fold` says 'nowhere'")
    assert helpers() == []


@pytest.mark.parametrize("killed", [1, 2])
def test_a_helper_that_dies_costs_nothing_but_time(
    killed: int, few: None, given: tuple[Recipe, Task], model: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for parcel in process_in_parallel(*given, model, rows()):
        found.append(parcel)
        if len(found) == 50:
            for child in helpers()[:killed]:
                child.kill()
    assert found == list(process_in_parallel(*given, None, rows()))
    assert capsys.readouterr().err.count("a process that examined rows has ended") == 1


@pytest.mark.slow
def test_helpers_end_with_the_one_that_asked(tmp_path: Path, tokenizer_folder: Path) -> None:
    """As the second Ctrl-C or the kernel ends it, with nobody left to say so; and they do not run its script again."""
    path = write_recipe(tmp_path, tokenizer_folder)
    script = tmp_path / "asks.py"
    script.write_text(ASKS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(path), str(tokenizer_folder)]
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert asking.stdout
    assert [asking.stdout.readline() for _ in range(2)] == ["here\n", "there\n"]
    children = psutil.Process(asking.pid).children(recursive=True)
    assert len(children) >= 2
    asking.kill()
    asking.wait()
    asking.stdout.close()
    _, left = psutil.wait_procs(children, timeout=30)
    assert left == []


def helpers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "tunesmith.data.workers" in one.cmdline()]
