"""A run folder can be moved; the error for another folder suggests a run."""

import os
import shutil
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import write_json
from tunesmith.core.rundir import RunDir, find_run
from tunesmith.fetch.reference import resolve


def make_run(path: Path, seconds: int) -> Path:
    path.mkdir(parents=True)
    RunDir(path).resolved_recipe.write_text("{}")
    os.utime(RunDir(path).resolved_recipe, (seconds, seconds))
    return path


def test_the_enclosing_run_or_the_newest_inside_is_suggested(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "c" / "old", 1)
    newest = make_run(tmp_path / "runs" / "c" / "new", 2)
    (newest / "train").mkdir()
    assert find_run(newest / "train") == newest
    assert find_run(tmp_path / "runs" / "c") == newest
    assert find_run(tmp_path / "runs") is None
    for folder in (newest / "train", tmp_path / "runs" / "c"):
        for open_path in (RunDir.existing, lambda path: resolve(str(path))):
            with pytest.raises(RecipeError) as caught:
                open_path(folder)
            assert str(newest) in str(caught.value.hint)


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a" / "run")
    with raises(RecipeError, "not-a-run", where=str(run.path)):
        RunDir.existing(run.path)
    run.path.mkdir(parents=True)
    run.resolved_recipe.touch()
    write_json(run.environment, {"recipe_folder": ".."})
    assert RunDir.existing(run.path).recipe_folder.resolve() == tmp_path / "a"
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert RunDir.existing(tmp_path / "b" / "run").recipe_folder.resolve() == tmp_path / "b"


def test_manifest_is_none_before_the_stage_is_finished(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.manifest("train") is None
    write_json(run.stage("train") / "manifest.json", {"steps": 3})
    assert run.manifest("train") == {"steps": 3}
    (run.stage("train") / "manifest.json").write_text("{")
    with raises(DamagedFile, "damaged-file", where="manifest.json"):
        run.manifest("train")


def test_checkpoint_names_sort_by_step(tmp_path: Path) -> None:
    paths = [RunDir(tmp_path).checkpoint(step) for step in (1, 9, 10, 99, 1000, 123_456)]
    assert paths == sorted(paths)
