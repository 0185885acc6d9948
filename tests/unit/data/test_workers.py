"""Workers give the same rows in the same order as one process, and none of them outlives it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError
from tunesmith.data import workers
from tunesmith.data.sources import Row
from tunesmith.data.workers import process_in_parallel
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.data_source import Split
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.model_tokenizer import load_tokenizer

COUNT = 300
SCRIPT = """
import sys, time
from pathlib import Path
from tunesmith.data import workers
from tunesmith.data.sources import Row
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer

print("started", flush=True)
workers.SERIAL_ROWS, workers.available_cores = 10, lambda: 2
recipe, model = load_recipe(Path(sys.argv[1])), ModelFolder("tiny", Path(sys.argv[2]))
rows = (Row(i, f"x:{i}", {"question": f"what is {i}?", "answer": f"it is {i}"}, "x") for i in range(1, 300))
for encoded in workers.process_in_parallel(recipe, task_for(recipe.data, load_tokenizer(model)), model, rows):
    if encoded.entry.row == 50:
        print("processing", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start two workers after 10 rows."""
    monkeypatch.setattr(workers, "SERIAL_ROWS", 10)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)


@pytest.fixture
def model(tokenizer_folder: Path) -> ModelFolder:
    return ModelFolder("tiny", tokenizer_folder)


@pytest.fixture
def recipe_and_task(tmp_path: Path, model: ModelFolder) -> tuple[Recipe, Task]:
    recipe = load_recipe(write_recipe(tmp_path, model.path))
    return recipe, task_for(recipe.data, load_tokenizer(model))


def rows(*, split: int | None = None) -> Iterator[Row]:
    for i in range(1, COUNT + 1):
        values = {"question": f"what is {i}?", "answer": f"it is {i}" if i % 7 else "", "fold": "train"}
        if i == split:
            values["fold"] = "nowhere"
        yield Row(i, f"x:{i}", values, "x")


def test_workers_give_the_same_rows_in_order(
    two_workers: None, recipe_and_task: tuple[Recipe, Task], model: ModelFolder
) -> None:
    serial = list(process_in_parallel(*recipe_and_task, None, rows()))
    parallel = list(process_in_parallel(*recipe_and_task, model, rows()))
    assert parallel == serial
    assert [encoded.entry.row for encoded in parallel] == list(range(1, COUNT + 1))
    assert {encoded.entry.status for encoded in parallel} == {"kept", "dropped"}
    assert running_workers() == []


def test_error_in_a_worker_is_that_of_one_process(
    two_workers: None, recipe_and_task: tuple[Recipe, Task], model: ModelFolder
) -> None:
    recipe = recipe_and_task[0]
    fold = recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": Split(column="fold")})})
    with raises(DataError, "unknown-split", "nowhere", where="x:200") as parallel:
        list(process_in_parallel(fold, recipe_and_task[1], model, rows(split=200)))
    with raises(DataError, "unknown-split") as serial:
        list(process_in_parallel(fold, recipe_and_task[1], None, rows(split=200)))
    assert str(parallel.value) == str(serial.value)
    assert running_workers() == []


@pytest.mark.parametrize("killed", [1, 2])
def test_rows_of_a_dead_worker_are_processed_in_the_main_process(
    killed: int,
    two_workers: None,
    recipe_and_task: tuple[Recipe, Task],
    model: ModelFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoded_rows = []
    for encoded in process_in_parallel(*recipe_and_task, model, rows()):
        encoded_rows.append(encoded)
        if len(encoded_rows) == 50:
            for child in running_workers()[:killed]:
                child.kill()
    assert encoded_rows == list(process_in_parallel(*recipe_and_task, None, rows()))
    assert capsys.readouterr().err.count("a worker process has died") == 1


@pytest.mark.slow
def test_workers_exit_when_the_main_process_is_killed(tmp_path: Path, tokenizer_folder: Path) -> None:
    """SIGKILL leaves the main process no chance to stop them. Workers do not run its script again either."""
    path = write_recipe(tmp_path, tokenizer_folder)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(path), str(tokenizer_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["started\n", "processing\n"]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def running_workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "tunesmith.data.workers" in child.cmdline()]
