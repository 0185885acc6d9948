"""Listing trials: every combination of the axes, each checked before anything is written."""

from pathlib import Path

import pytest
from tests.support.earlier_versions import record, with_value, without
from tests.support.errors import raises
from tests.support.tiny import recipe
from tests.unit.sweep.conftest import MakeSweep

from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.scoring.verdict import corrected_confidence
from tunesmith.sweep.axes import (
    Sweep,
    check_sweep,
    list_trials,
    read_sweep,
    split_values,
    write_sweep,
)


def list_with(folder: Path, model: Path, *over: str, **settings: object) -> Sweep:
    return list_trials(recipe(folder, model), over=over, **settings)  # type: ignore[arg-type]


def test_every_combination_is_a_trial_and_the_first_axis_varies_slowest(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = list_with(tmp_path, tokenizer_folder, "tuning.rank=2,8", "data.train_rows=10,20,30", overrides=["seed=3"])
    assert [trial.label for trial in sweep.trials][:4] == [
        "rank 2, train_rows 10",
        "rank 2, train_rows 20",
        "rank 2, train_rows 30",
        "rank 8, train_rows 10",
    ]
    assert [trial.number for trial in sweep.trials] == [1, 2, 3, 4, 5, 6]
    assert sweep.trials[3].folder == "04-rank-8_train_rows-10"
    assert [axis.measure for axis in sweep.axes] == ["trained_parameters", "train_rows"]


def test_models_are_the_first_axis_and_named_in_full(tmp_path: Path, tokenizer_folder: Path, tiny: Path) -> None:
    models = [str(tokenizer_folder), str(tiny)]
    sweep = list_with(tmp_path, tokenizer_folder, "tuning.rank=2,8", models=models)
    assert sweep.axes[0].measure == "model_parameters"
    assert sweep.trials[2].label == f"{tiny}, rank 2"
    assert sweep.trials[2].folder == f"03-base-{tiny.name}_rank-2"


def test_default_folder_follows_from_the_trials(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = list_with(tmp_path, tokenizer_folder, "tuning.rank=2,8")
    assert sweep.path == list_with(tmp_path, tokenizer_folder, "tuning.rank=2,8").path
    assert sweep.path != list_with(tmp_path, tokenizer_folder, "tuning.rank=2,16").path
    assert sweep.path != list_with(tmp_path, tokenizer_folder, "tuning.rank=2,8", overrides=["seed=1"]).path
    assert sweep.path.parent == Path("runs/tiny")


def test_sweep_of_an_earlier_version_is_found_again(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    axis = "tuning.rank=2,8"
    sweep = list_with(tmp_path, tokenizer_folder, axis)
    write_sweep(sweep, tmp_path / "recipe.yaml")
    for trial in sweep.trials:
        record(sweep.run(trial), without("tuning.dora"))
    earlier = sweep.path.rename(sweep.path.with_name("sweep-00000000"))
    assert list_with(tmp_path, tokenizer_folder, axis).path == earlier
    for other in ("tuning.rank=2,8,16", "tuning.rank=2,16"):
        assert list_with(tmp_path, tokenizer_folder, other).path != earlier
    assert list_with(tmp_path, tokenizer_folder, axis, overrides=["tuning.dora=true"]).path != earlier
    record(RunDir(earlier / sweep.trials[1].folder), with_value("tuning.dora", True))
    assert list_with(tmp_path, tokenizer_folder, axis).path != earlier


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2,8,32", ["2", "8", "32"]),
        ("all-linear,[q_proj, v_proj]", ["all-linear", "[q_proj, v_proj]"]),
        ("{method: full},{method: lora, rank: 4}", ["{method: full}", "{method: lora, rank: 4}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("1, 2", ["1", "2"]),
    ],
)
def test_values_are_split_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_whole_section_can_be_an_axis(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = list_with(tmp_path, tokenizer_folder, "tuning={method: full},{method: lora, rank: 4}")
    assert sweep.trials[1].label == "tuning {method: lora, rank: 4}"
    assert sweep.trials[1].folder == "02-tuning-method-lora-rank-4"


def test_all_mistakes_of_all_trials_are_listed_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    axes = ("tuning.rnk=2,8", "train.learning_rate=0.1,-1,x", "data.train_rows=0,5")
    with raises(RecipeError, "invalid-trials") as error:
        list_with(tmp_path, tokenizer_folder, *axes, out=tmp_path / "sweep")
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert any(line.startswith("tuning.rnk=2 and tuning.rnk=8: ") and "`rank`" in line for line in lines)
    assert any(line.startswith("train.learning_rate=-1: ") for line in lines)
    assert any(line.startswith("train.learning_rate=x: ") for line in lines)
    assert any(line.startswith("data.train_rows=0: ") for line in lines)
    assert not (tmp_path / "sweep").exists()


def test_contradiction_of_one_combination_is_reported(tmp_path: Path, tokenizer_folder: Path) -> None:
    with raises(RecipeError, "invalid-trials", "train.micro_batch") as error:
        list_with(tmp_path, tokenizer_folder, "train.examples_per_step=4,16", "train.micro_batch=2,8")
    assert len(str(error.value).splitlines()) == 1


def test_missing_models_are_reported_together(tmp_path: Path, tokenizer_folder: Path) -> None:
    with raises(RecipeError, "invalid-trials", "./nowhere", "./nobody"):
        list_with(tmp_path, tokenizer_folder, models=[str(tokenizer_folder), "./nowhere", "./nobody"])


@pytest.mark.parametrize(
    ("over", "overrides", "code", "named"),
    [
        (["tuning.rank"], [], "wrong-axis", "tuning.rank"),
        (["tuning.rank=4"], [], "number-of-trials", ""),
        ([], [], "number-of-trials", ""),
        (["tuning.rank=2,2"], [], "wrong-axis", "2, 2"),
        (["tuning.rank=2,,8"], [], "wrong-axis", "tuning.rank"),
        (["tuning.rank=2,8"], ["tuning.rank=4"], "wrong-axis", "tuning.rank"),
        (["tuning.rank=2,8"], ["tuning={method: full}"], "wrong-axis", "`tuning`"),
        (["tuning.rank=2,8", "tuning.rank=4,16"], [], "wrong-axis", "tuning.rank"),
        (["evaluate.rows=10,20"], [], "wrong-axis", "evaluate.rows"),
        (["promote.min_gain=0,1"], [], "wrong-axis", "promote.min_gain"),
        (["tuning.rank=" + ",".join(str(rank) for rank in range(1, 52))], [], "number-of-trials", "50"),
    ],
)
def test_wrong_axes_are_refused(
    tmp_path: Path, tokenizer_folder: Path, over: list[str], overrides: list[str], code: str, named: str
) -> None:
    with raises(RecipeError, code, named):
        list_with(tmp_path, tokenizer_folder, *over, overrides=overrides)


def test_fifty_trials_are_not_too_many(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = list_with(tmp_path, tokenizer_folder, "tuning.rank=" + ",".join(str(rank) for rank in range(1, 51)))
    assert corrected_confidence(0.95, len(sweep.trials)) == pytest.approx(0.999)


def test_read_sweep_returns_the_sweep_that_was_written(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8", "train.epochs=1,2", overrides=["seed=4"])
    assert read_sweep(sweep.path) == sweep
    assert [sweep.recipe(trial).tuning.rank for trial in sweep.trials] == [2, 2, 8, 8]  # type: ignore[union-attr]
    assert {sweep.recipe(trial).seed for trial in sweep.trials} == {4}


def test_folder_of_something_else_is_refused_and_kept(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep()
    other = list_trials(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=sweep.path)
    with raises(RecipeError, "other-sweep", where=str(sweep.path)):
        write_sweep(other, tmp_path / "recipe.yaml")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("all of it", encoding="utf-8")
    other = list_trials(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=tmp_path / "thesis")
    with raises(RecipeError, "folder-not-empty", where="thesis"):
        write_sweep(other, tmp_path / "recipe.yaml")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]


def test_folder_of_a_run_is_not_a_sweep(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with raises(RecipeError, "not-a-sweep"):
        read_sweep(sweep.run(sweep.trials[0]).path)


def test_folder_of_a_ladder_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rungs.json").write_text("{}", encoding="utf-8")
    sweep = list_trials(recipe(tmp_path, tokenizer_folder), over=["seed=1,2"], out=tmp_path / "old")
    for act in (lambda: read_sweep(tmp_path / "old"), lambda: check_sweep(sweep, tmp_path / "recipe.yaml")):
        with raises(RecipeError, "old-sweep", "--out", where=str(tmp_path / "old")):
            act()
