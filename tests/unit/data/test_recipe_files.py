"""A run has copies of the files in the recipe's folder that evaluation needs."""

import sqlite3
from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith.core.files import write_json
from tunesmith.core.rundir import RunDir
from tunesmith.data.recipe_files import copy_recipe_files, database_file
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.recipe.load import load_recipe
from tunesmith.scoring.custom import custom_metrics, source_files

METRIC = "import helper\nfrom pkg.deep import two\ndef fn(predictions, references):\n    return [helper.one() * two] * len(predictions)\n"  # noqa: E501


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a metric, the module and packages that it imports, and a module that it does not import."""
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "spaces").mkdir()
    (folder / "metric.py").write_text(METRIC)
    (folder / "helper.py").write_text("import json, inner\ndef one():\n    return inner.value\n")
    (folder / "inner.py").write_text("value = 0.5\n")
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "deep.py").write_text("two = 2\n")
    (folder / "pkg" / "words.txt").write_text("a b")
    (folder / "spaces" / "own.py").write_text("def fn(p, r):\n    return [1.0] * len(p)\n")
    (folder / "other.py").write_text("raise SystemExit\n")
    return folder


def opened(project: Path, tmp_path: Path, database: str | None = None) -> tuple[RunDir, Path]:
    metrics = ["metric:fn", *(["execution"] if database else [])]
    evaluate = {"metrics": metrics, "primary": "metric:fn", **({"database": database} if database else {})}
    file = recipe(project, tmp_path / "none", evaluate=evaluate)
    run = RunDir(tmp_path / "run", recipe_folder=project)
    write_json(run.environment, {"recipe_folder": "../project", "recipe_file": file.name})
    write_json(run.stage("prepare") / "manifest.json", {})
    return run, file


def test_source_files_include_all_imports_of_a_metric(project: Path) -> None:
    names = {file.relative_to(project).as_posix() for file in source_files("metric:fn", project)}
    assert names == {"metric.py", "helper.py", "inner.py", "pkg/__init__.py", "pkg/deep.py", "pkg/words.txt"}
    assert source_files("spaces.own:fn", project) == [project / "spaces" / "own.py"]
    assert source_files("rougeL", project) == source_files("math:sqrt", project) == []


def test_changed_import_of_a_metric_changes_the_scoring_inputs(project: Path, tmp_path: Path) -> None:
    run, file = opened(project, tmp_path)
    before = scoring_inputs(["metric:fn"], load_recipe(file), run)
    (project / "inner.py").write_text("value = 1.0\n")
    assert scoring_inputs(["metric:fn"], load_recipe(file), run) != before


@pytest.mark.parametrize("location", ["db.sqlite", "../data/db.sqlite", "absolute"])
def test_moved_run_is_scored_with_its_copies(project: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "data").mkdir()
    name = str(tmp_path / "data" / "db.sqlite") if location == "absolute" else location
    with sqlite3.connect(project / name) as connection:
        connection.execute("CREATE TABLE t (a)")
    run, file = opened(project, tmp_path, database=name)
    loaded = load_recipe(file)
    copy_recipe_files(loaded, run)
    before = scoring_inputs(loaded.evaluate.metrics, loaded, run)
    moved = RunDir(run.path.rename(tmp_path / "moved"))
    project.rename(tmp_path / "gone")
    (tmp_path / "data").rename(tmp_path / "gone-too")
    assert moved.recipe_folder == moved.recipe_files
    assert scoring_inputs(loaded.evaluate.metrics, loaded, moved) == before
    assert custom_metrics(["metric:fn"], moved.recipe_folder)["metric:fn"](["x"], ["y"]) == [1.0]
    assert (database := database_file(loaded, moved.recipe_folder)) is not None
    assert database.is_relative_to(moved.path)
    assert not (moved.recipe_files / "other.py").exists()


def test_copies_are_updated_if_the_recipe_folder_exists(project: Path, tmp_path: Path) -> None:
    run, file = opened(project, tmp_path)
    copy_recipe_files(load_recipe(file), run)
    copy = run.recipe_files / "inner.py"
    before = copy.stat().st_ino, copy.stat().st_mtime_ns
    copy_recipe_files(load_recipe(file), run)
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == before
    (project / "inner.py").write_text("value = 0.25\n")
    (project / "inner.py").chmod(0o444)
    for _ in range(2):
        copy_recipe_files(load_recipe(file), run)
        assert copy.read_text() == "value = 0.25\n"
    assert RunDir(run.path).recipe_folder.samefile(project)
