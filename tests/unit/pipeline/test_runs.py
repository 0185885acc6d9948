"""Finding the folder of a run by the recipe's folder and the settings that determine training."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.earlier_versions import record, renamed, with_value, without
from tests.support.errors import raises
from tests.support.tiny import recipe, tree, write_rows

from tunesmith.core.errors import DataError, RecipeError, TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline import runs as module
from tunesmith.pipeline.launcher import launch_run
from tunesmith.pipeline.runner import run_recipe
from tunesmith.pipeline.runs import identity, open_run
from tunesmith.plan.inspect import inspect_rows
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def project(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """The recipe in a folder `exp` with its rows."""
    return write_experiment(tmp_path / "exp", tokenizer_folder)


def write_experiment(folder: Path, model: Path, rows: int = 40) -> Path:
    """Write a recipe and its rows, and return the recipe."""
    folder.mkdir()
    file = recipe(folder, model)
    write_rows(folder / "rows.jsonl", rows)
    return file


def count_prepared_rows(run: RunDir) -> int:
    return sum(1 for _ in run.ledger.open())


def test_equal_recipes_in_two_folders_are_different_runs(tmp_path: Path, tokenizer_folder: Path) -> None:
    first = write_experiment(tmp_path / "exp1", tokenizer_folder, rows=40)
    second = write_experiment(tmp_path / "exp2", tokenizer_folder, rows=60)
    assert first.read_text() == second.read_text()
    runs = [run_recipe(file, until="prepare") for file in (first, second)]
    assert runs[0].path != runs[1].path
    assert [count_prepared_rows(run) for run in runs] == [40, 60]
    with raises(RecipeError, "other-run", "exp1", where=str(runs[0].path)):
        run_recipe(second, out=runs[0].path, until="prepare")


def test_all_paths_to_a_recipe_find_the_same_run(project: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(project.parent)
    names = ["exp/recipe.yaml", "link/recipe.yaml", str(project), "exp/../exp/recipe.yaml"]
    assert len({open_run(Path(name), (), None).run.path for name in names}) == 1


def test_linked_recipe_uses_the_folder_of_the_link(project: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    other = write_experiment(tmp_path / "archive", tokenizer_folder, rows=50)
    project.unlink()
    project.symlink_to(os.path.relpath(other, project.parent))
    run = run_recipe(project, until="prepare")
    assert count_prepared_rows(run) == 40
    assert os.path.realpath(run.recipe_folder) == os.path.realpath(project.parent)
    assert {line["where"] for line in inspect_rows(project, rows=40)} <= {f"rows.jsonl:{n}" for n in range(1, 41)}


@pytest.mark.parametrize(
    "change", ["evaluate.rows=4", "evaluate.metrics=[exact_match]", "promote={model: tiny}", "trackers=[tensorboard]",
               "launch={on: torchrun, processes: 2}", "train.keep_checkpoints=1"],
)  # fmt: skip
def test_settings_that_do_not_determine_training_find_the_same_run(project: Path, change: str) -> None:
    changes = [change, *(["evaluate.primary=exact_match"] if "metrics" in change else [])]
    assert open_run(project, changes, None).run.path == open_run(project, (), None).run.path


def test_decoding_settings_count_if_validation_generates_answers(project: Path) -> None:
    generating = ["train.valid_metrics=[rougeL]"]
    for change in ("evaluate.max_new_tokens=3", "evaluate.beams=2"):
        assert identity(load_recipe(project, [change])) == identity(load_recipe(project))
        assert identity(load_recipe(project, [change, *generating])) != identity(load_recipe(project, generating))


@pytest.mark.parametrize("change", ["seed=3", "train.learning_rate=1", "data.prompt=Q {question}", "tuning.rank=2"])
def test_settings_that_determine_training_start_another_run(project: Path, change: str) -> None:
    assert open_run(project, [change], None).run.path != open_run(project, (), None).run.path


def test_renamed_recipe_folder_resumes_its_run(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project, until="prepare")
    before = tree(run.stage("prepare"))
    project.parent.rename(tmp_path / "renamed")
    again = run_recipe(tmp_path / "renamed" / "recipe.yaml", until="prepare")
    assert again.path == run.path
    assert tree(again.stage("prepare")) == before
    assert os.path.realpath(RunDir(run.path).recipe_folder) == os.path.realpath(tmp_path / "renamed")


def test_renamed_recipe_folder_with_other_rows_is_another_run(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project, until="prepare")
    project.parent.rename(tmp_path / "renamed")
    write_rows(tmp_path / "renamed" / "rows.jsonl", 41)
    again = run_recipe(tmp_path / "renamed" / "recipe.yaml", until="prepare")
    assert again.path != run.path
    assert count_prepared_rows(again) == 41


def test_run_started_in_another_folder_is_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_recipe(project, until="prepare").path.resolve()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    capsys.readouterr()
    second = run_recipe("../exp/recipe.yaml", until="prepare").path.resolve()
    assert second != first
    command = f"tunesmith run {os.path.relpath(first)}"
    assert command in capsys.readouterr().err
    run_recipe("../exp/recipe.yaml", until="prepare")
    assert command not in capsys.readouterr().err


def test_moved_project_keeps_its_runs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_recipe(project, until="prepare")
    monkeypatch.chdir("/")
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    monkeypatch.chdir(moved)
    assert open_run(Path("exp/recipe.yaml"), (), None).run.path == run.path


def test_prepared_run_resumes_without_its_sources(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project, until="prepare")
    before = tree(run.stage("prepare"))
    rows = (project.parent / "rows.jsonl").rename(tmp_path / "elsewhere.jsonl")
    for named in (project, run.path):
        assert tree(run_recipe(named, until="prepare").stage("prepare")) == before
    rows.rename(project.parent / "rows.jsonl")
    write_rows(project.parent / "rows.jsonl", 41)
    for named in (project, run.path):
        with raises(RecipeError, "inputs-changed", "prepare", "source", where=str(run)):
            run_recipe(named, until="prepare")


def test_moved_run_folder_reads_no_files_around_it(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project, until="prepare")
    place = tmp_path / "a" / "runs" / "tiny" / run.path.name
    place.parent.mkdir(parents=True)
    run.path.rename(place)
    write_rows(place.parents[2] / "rows.jsonl", 5)  # the recorded relative path leads here now
    (place.parents[2] / "exp").mkdir()
    write_rows(place.parents[2] / "exp" / "rows.jsonl", 5)
    assert count_prepared_rows(run_recipe(place, until="prepare")) == 40


@pytest.mark.parametrize(
    "changes",
    [
        ["train.learning_rate=5e-3"],
        ["data.prompt=Q {question}"],
        ["evaluate.rows=3", "seed=9"],
        ["evaluate.metrics=[execution]", "evaluate.primary=execution", "evaluate.database=none.sqlite"],
        ["evaluate.metrics=[nothing:here]", "evaluate.primary=nothing:here"],
        ["evaluate.rows=zero"],
    ],
)
@pytest.mark.parametrize("named", ["run", "recipe"])
def test_refused_change_leaves_every_byte(project: Path, named: str, changes: list[str]) -> None:
    run = run_recipe(project, out="a", until="prepare")
    before = tree(run.path)
    with pytest.raises(TunesmithError):
        run_recipe(run.path if named == "run" else project, changes, out=None if named == "run" else "a")
    assert tree(run.path) == before
    assert run_recipe(run.path, until="prepare").path == run.path
    assert run_recipe(project, out="a", until="prepare").path.samefile(run.path)


def test_refused_change_names_both_values(project: Path) -> None:
    run = run_recipe(project, out="a", until="prepare")
    with raises(RecipeError, "settings-changed", "train.learning_rate", "0.01", "0.005", where=str(run)):
        run_recipe(run.path, ["train.learning_rate=5e-3"])


@pytest.mark.parametrize("lost", ["rows.jsonl", "base"])
def test_run_that_cannot_start_writes_nothing(project: Path, tmp_path: Path, lost: str) -> None:
    if lost == "base":
        project.write_text(project.read_text().replace("base: /", "base: /none/"))
    else:
        (project.parent / lost).unlink()
    before = tree(tmp_path)
    with pytest.raises(RecipeError if lost == "base" else DataError):
        run_recipe(project)
    assert tree(tmp_path) == before


def test_changed_rows_are_refused_before_anything_is_written(project: Path) -> None:
    run = run_recipe(project, until="prepare")
    write_rows(project.parent / "rows.jsonl", 41)
    before = tree(run.path)
    with raises(RecipeError, "inputs-changed", "prepare", "source"):
        run_recipe(project, ["evaluate.rows=3"])
    assert tree(run.path) == before


def test_changes_on_the_command_line_are_recorded_with_the_recipe(project: Path) -> None:
    run = run_recipe(project, ["evaluate.rows=5"], until="prepare")
    assert run.recipe.read_text().startswith("# Changed on the command line: evaluate.rows=5\n")
    run_recipe(run.path, ["evaluate.rows=6"], until="prepare")
    assert "evaluate.rows=6" in run.recipe.read_text().splitlines()[0]
    assert load_recipe(run.resolved_recipe).evaluate.rows == 6
    assert load_recipe(run.recipe) == load_recipe(project)


def test_environment_has_no_absolute_path(project: Path, tmp_path: Path) -> None:
    run = run_recipe(project, until="prepare")
    assert str(tmp_path) not in run.environment.read_text()
    assert read_json(run.environment)["recipe_file"] == "recipe.yaml"


NEW_KEYS = ["data.source.quote", "data.split.by", "data.leakage", "train.valid_loss_rows", "tuning.dora", "seed"]


@pytest.mark.parametrize("key", NEW_KEYS)
def test_run_from_before_a_key_existed_is_resumed(project: Path, key: str) -> None:
    run = run_recipe(project, until="prepare")
    record(run, without(key))
    run = renamed(run)
    before = tree(run.stage("prepare"))
    for named, out in ((project, None), (project, run.path), (run.path, None)):
        again = run_recipe(named, out=out, until="prepare")
        assert again.path.samefile(run.path)
        assert tree(again.stage("prepare")) == before
    (project.parent / "rows.jsonl").unlink()
    assert open_run(project, (), None).run.path == run.path
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_run_that_recorded_a_digest_of_its_settings_is_resumed(project: Path) -> None:
    run = run_recipe(project, until="prepare")
    record(run, without("data.source.quote"))
    write_json(run.environment, {**read_json(run.environment), "settings": digest_of("as they were then")})
    run = renamed(run)
    assert open_run(project, (), None).run.path == run.path
    assert open_run(project, ["train.epochs=3"], None).run.path != run.path
    run_recipe(project, until="prepare")
    assert read_json(run.environment)["settings"] == identity(load_recipe(project))


def test_run_from_before_a_key_existed_is_named_from_another_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_recipe(project, until="prepare")
    record(run, without("tuning.dora"))
    first = renamed(run).path.resolve()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    capsys.readouterr()
    run_recipe("../exp/recipe.yaml", until="prepare")
    assert f"tunesmith run {os.path.relpath(first)}" in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [without, lambda key: with_value(key, "all")], ids=["no key", "another default"])
def test_other_value_than_that_of_an_earlier_version_is_another_run(
    project: Path, recorded: Callable[[str], Callable[[dict[str, Any]], None]]
) -> None:
    run = run_recipe(project, until="prepare")
    record(run, recorded("train.valid_loss_rows"))
    run = renamed(run)
    changes = ["train.valid_loss_rows=9"]
    assert open_run(project, changes, None).run.path != run.path
    before = tree(run.path)
    for named, out in ((project, run.path), (run.path, None)):
        with raises(RecipeError, "settings-changed", "train.valid_loss_rows", where=str(run)):
            run_recipe(named, changes, out=out)
    assert tree(run.path) == before


def test_changed_default_starts_another_run(project: Path) -> None:
    run = run_recipe(project, until="prepare")
    record(run, with_value("train.valid_loss_rows", "all"))
    run = renamed(run)
    assert open_run(project, (), None).run.path != run.path
    assert open_run(project, ["train.valid_loss_rows=all"], None).run.path == run.path
    with raises(RecipeError, "settings-changed", "'all'", "'auto'"):
        open_run(project, (), run.path)
    assert open_run(run.path, (), None).recipe.train.valid_loss_rows == "all"


def test_run_with_a_removed_key_is_kept_and_not_resumed(project: Path) -> None:
    run = run_recipe(project, until="prepare")
    record(run, with_value("train.gone", 3))
    run = renamed(run)
    before = tree(run.path)
    assert open_run(project, (), None).run.path != run.path
    for named, out in ((project, run.path), (run.path, None)):
        with pytest.raises(RecipeError) as error:
            run_recipe(named, out=out)
        assert "train.gone" in str(error.value)
        assert "another version" in str(error.value.hint)
    assert tree(run.path) == before


def test_damaged_record_next_to_a_run_is_ignored(project: Path) -> None:
    run = run_recipe(project, until="prepare")
    broken = run.path.with_name("aaa")
    broken.mkdir()
    (broken / "environment.json").write_text("{")
    run = renamed(run)
    assert open_run(project, (), None).run.path == run.path


def test_recipe_is_loaded_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = module.load_recipe

    def load_and_record(path: Path, overrides: Sequence[str] = ()) -> Recipe:
        loaded.append(path)
        return load(path, overrides)

    monkeypatch.setattr(module, "load_recipe", load_and_record)
    launch_run(open_run(project, (), None), until="prepare", here=True, detach=False)
    assert loaded == [project]
