"""Moved runs and registries work as before, and read no unrelated files near them."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe, save_model

from tunesmith import Registry, export_model, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, read_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import resolve
from tunesmith.promote.commands import promote_run

PROMOTE = {"model": "tiny", "min_gain": -2.0}
METRIC = "from helper import one\ndef fn(predictions, references):\n    return [one] * len(predictions)\n"


@pytest.fixture
def project(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with its own model, metric and database, whose recipe names them relative to itself."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a C#" / "exp").mkdir(parents=True)
    folder = tmp_path / "a C#" / "exp"
    shutil.copytree(tiny, folder.parent / "models" / "tiny")
    (folder / "metric.py").write_text(METRIC)
    (folder / "helper.py").write_text("one = 1.0\n")
    with sqlite3.connect(folder / "db.sqlite") as connection:
        connection.execute("CREATE TABLE t (a)")
    write(folder)
    return folder


def write(folder: Path, **changes: Any) -> Path:
    evaluate = {"metrics": ["metric:fn", "exact_match", "execution"], "primary": "metric:fn", "rows": 8,
                "max_new_tokens": 2, "database": "db.sqlite"}  # fmt: skip
    data = {"source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{question}", "response": "SELECT '{answer}'",
            "split": {"valid": 0.15, "test": 0.2}}  # fmt: skip
    sections = {
        "data": data, "model": {"base": "../models/tiny", "precision": "fp32"},
        "train": {"learning_rate": 0.01, "max_steps": 1}, "evaluate": evaluate, "promote": PROMOTE,
    }  # fmt: skip
    return recipe(folder, Path("unused"), **{**sections, **changes})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_run_is_judged_and_promoted_at_another_place(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project / "recipe.yaml", out=tmp_path / "runs" / "x", until="train")
    archive = shutil.make_archive(str(tmp_path / "run"), "zip", run.path)
    trained = snapshot(run.stage("train"))
    shutil.rmtree(tmp_path / "runs")
    project.rename(tmp_path / "archived")  # the recipe with its rows, metric and database; the model stays
    shutil.unpack_archive(archive, tmp_path / "other" / "deep" / "run")
    moved = RunDir(tmp_path / "other" / "deep" / "run")

    run_recipe(moved.path, ["evaluate.rows=7"])
    assert read_json(moved.verdict)["primary"]["rows"] == 7
    assert {name: data for name, (_, data) in snapshot(moved.stage("train")).items()} == {
        name: data for name, (_, data) in trained.items()
    }
    assert read_json(moved.stage("promote") / MANIFEST)["version"] == 1
    with pytest.raises(RecipeError):
        promote_run(moved.path, force=True, reason=None)
    assert resolve("tiny@staging").root.path.samefile(tmp_path / "a C#" / "models" / "tiny")
    for path in moved.path.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            assert str(tmp_path) not in path.read_text(), path


def test_a_registry_is_opened_at_another_place(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_recipe(project / "recipe.yaml", out=tmp_path / "run")
    before = resolve("tiny@staging").digest()
    shutil.copytree(Registry.default().root, tmp_path / "some" / "where" / "registry")
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "some" / "where" / "registry"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "another user"))
    monkeypatch.chdir("/")
    shutil.rmtree(tmp_path / "run")
    assert resolve("tiny@1").digest() == before
    merged = export_model("tiny@staging", tmp_path / "merged", to="merged").folder
    assert {path.stat().st_mode & 0o777 for path in merged.iterdir()} == {(tmp_path / "merged").stat().st_mode & 0o666}


def test_settings_of_evaluation_do_not_train_again(project: Path, tmp_path: Path) -> None:
    first = run_recipe(write(project, promote=None), until="evaluate")
    trained = snapshot(first.stage("train"))
    write(project)
    again = run_recipe(project / "recipe.yaml", ["evaluate.rows=6"])
    assert again.path == first.path
    assert snapshot(again.stage("train")) == trained
    assert read_json(again.verdict)["primary"]["rows"] == 6
    assert Registry.default().resolve("tiny@staging").number == 1


def test_a_missing_base_is_refused_and_nothing_is_written(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project / "recipe.yaml", until="train")
    before = snapshot(run.path)
    shutil.rmtree(project.parent / "models")
    with pytest.raises(RecipeError):
        run_recipe(run.path)
    with pytest.raises(RecipeError):
        run_recipe(project / "recipe.yaml")
    assert snapshot(run.path) == before
    save_model(project.parent / "models" / "tiny", "llama", seed=5)
    with raises(RecipeError, "inputs-changed", "base"):
        run_recipe(run.path)
    assert snapshot(run.path) == before
