"""The list of trials: every combination, each checked, and nothing written before all are valid."""

from pathlib import Path

import pytest
from tests.support.earlier import record, with_value, without
from tests.support.tiny import recipe
from tests.unit.sweep.conftest import MakeSweep

from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.sweep.axes import (
    Sweep,
    check_sweep,
    corrected_confidence,
    list_trials,
    read_sweep,
    split_values,
    write_sweep,
)


def listed(folder: Path, model: Path, *over: str, **settings: object) -> Sweep:
    return list_trials(recipe(folder, model), over=over, **settings)  # type: ignore[arg-type]


def test_every_combination_is_a_trial_and_the_first_axis_is_the_slowest(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", "data.train_rows=10,20,30", overrides=["seed=3"])
    assert [trial.label for trial in sweep.trials][:4] == [
        "rank 2, train_rows 10",
        "rank 2, train_rows 20",
        "rank 2, train_rows 30",
        "rank 8, train_rows 10",
    ]
    assert [trial.number for trial in sweep.trials] == [1, 2, 3, 4, 5, 6]
    assert sweep.trials[3].folder == "04-rank-8_train_rows-10"
    assert [axis.measure for axis in sweep.axes] == ["trained_parameters", "train_rows"]


def test_models_come_first_and_are_named_in_full(tmp_path: Path, tokenizer_folder: Path, tiny: Path) -> None:
    models = [str(tokenizer_folder), str(tiny)]
    sweep = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", models=models)
    assert sweep.axes[0].measure == "model_parameters"
    assert sweep.trials[2].label == f"{tiny}, rank 2"
    assert sweep.trials[2].folder == f"03-base-{tiny.name}_rank-2"


def test_its_folder_follows_from_the_trials(tmp_path: Path, tokenizer_folder: Path) -> None:
    one = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8")
    assert one.path == listed(tmp_path, tokenizer_folder, "tuning.rank=2,8").path
    assert one.path != listed(tmp_path, tokenizer_folder, "tuning.rank=2,16").path
    assert one.path != listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", overrides=["seed=1"]).path
    assert one.path.parent == Path("runs/tiny")


def test_a_sweep_of_an_earlier_version_is_found_again(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    axis = "tuning.rank=2,8"
    sweep = listed(tmp_path, tokenizer_folder, axis)
    write_sweep(sweep, tmp_path / "recipe.yaml")
    for trial in sweep.trials:
        record(sweep.run(trial), without("tuning.dora"))
    earlier = sweep.path.rename(sweep.path.with_name("sweep-00000000"))
    assert listed(tmp_path, tokenizer_folder, axis).path == earlier
    for other in ("tuning.rank=2,8,16", "tuning.rank=2,16"):
        assert listed(tmp_path, tokenizer_folder, other).path != earlier
    assert listed(tmp_path, tokenizer_folder, axis, overrides=["tuning.dora=true"]).path != earlier
    record(RunDir(earlier / sweep.trials[1].folder), with_value("tuning.dora", True))
    assert listed(tmp_path, tokenizer_folder, axis).path != earlier


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


def test_a_whole_section_can_be_an_axis(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = listed(tmp_path, tokenizer_folder, "tuning={method: full},{method: lora, rank: 4}")
    assert sweep.trials[1].label == "tuning {method: lora, rank: 4}"
    assert sweep.trials[1].folder == "02-tuning-method-lora-rank-4"


def test_all_mistakes_of_all_trials_are_told_at_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    axes = ("tuning.rnk=2,8", "train.learning_rate=0.1,-1,x", "data.train_rows=0,5")
    with pytest.raises(RecipeError) as told:
        listed(tmp_path, tokenizer_folder, *axes, out=tmp_path / "sweep")
    lines = str(told.value).splitlines()
    assert len(lines) == 4
    assert "tuning.rnk=2 and tuning.rnk=8: tuning.rnk: unknown key; did you mean `rank`?" in lines
    assert any(line.startswith("train.learning_rate=-1: ") for line in lines)
    assert any(line.startswith("train.learning_rate=x: ") for line in lines)
    assert any(line.startswith("data.train_rows=0: ") for line in lines)
    assert not (tmp_path / "sweep").exists()


def test_a_clash_that_only_one_combination_has_is_told(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.micro_batch") as told:
        listed(tmp_path, tokenizer_folder, "train.examples_per_step=4,16", "train.micro_batch=2,8")
    assert len(str(told.value).splitlines()) == 1


def test_models_that_are_not_there_are_told_before_anything_runs(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(RecipeError) as told:
        listed(tmp_path, tokenizer_folder, models=[str(tokenizer_folder), "./nowhere", "./nobody"])
    assert "./nowhere" in str(told.value)
    assert "./nobody" in str(told.value)


@pytest.mark.parametrize(
    ("over", "overrides", "told"),
    [
        (["tuning.rank"], [], "is not an axis"),
        (["tuning.rank=4"], [], "at least two trials"),
        ([], [], "at least two trials"),
        (["tuning.rank=2,2"], [], "a value twice"),
        (["tuning.rank=2,,8"], [], "empty value"),
        (["tuning.rank=2,8"], ["tuning.rank=4"], "sets it too"),
        (["tuning.rank=2,8"], ["tuning={method: full}"], "sets it too"),
        (["tuning.rank=2,8", "tuning.rank=4,16"], [], "sets it too"),
        (["evaluate.rows=10,20"], [], "cannot be an axis"),
        (["promote.min_gain=0,1"], [], "cannot be an axis"),
        (["tuning.rank=" + ",".join(str(rank) for rank in range(1, 52))], [], "take 50 or fewer"),
    ],
)
def test_axes_that_make_no_sense_are_refused(
    tmp_path: Path, tokenizer_folder: Path, over: list[str], overrides: list[str], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        listed(tmp_path, tokenizer_folder, *over, overrides=overrides)


def test_fifty_trials_are_not_too_many(tmp_path: Path, tokenizer_folder: Path) -> None:
    sweep = listed(tmp_path, tokenizer_folder, "tuning.rank=" + ",".join(str(rank) for rank in range(1, 51)))
    assert corrected_confidence(0.95, len(sweep.trials)) == pytest.approx(0.999)


def test_what_is_written_is_read_again(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("tuning.rank=2,8", "train.epochs=1,2", overrides=["seed=4"])
    assert read_sweep(sweep.path) == sweep
    assert [sweep.recipe(trial).tuning.rank for trial in sweep.trials] == [2, 2, 8, 8]  # type: ignore[union-attr]
    assert {sweep.recipe(trial).seed for trial in sweep.trials} == {4}


def test_a_folder_of_something_else_is_left_alone(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep()
    other = list_trials(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=sweep.path)
    with pytest.raises(RecipeError, match="other axes"):
        write_sweep(other, tmp_path / "recipe.yaml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it", encoding="utf-8")
    other = list_trials(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=tmp_path / "mine")
    with pytest.raises(RecipeError, match="holds no sweep"):
        write_sweep(other, tmp_path / "recipe.yaml")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_is_no_sweep(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with pytest.raises(RecipeError, match="holds no sweep"):
        read_sweep(sweep.run(sweep.trials[0]).path)


def test_the_folder_of_a_ladder_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rungs.json").write_text("{}", encoding="utf-8")
    sweep = list_trials(recipe(tmp_path, tokenizer_folder), over=["seed=1,2"], out=tmp_path / "old")
    for act in (lambda: read_sweep(tmp_path / "old"), lambda: check_sweep(sweep, tmp_path / "recipe.yaml")):
        with pytest.raises(RecipeError) as caught:
            act()
        assert caught.value.where == str(tmp_path / "old")
        assert "--out" in str(caught.value.hint)
