"""The list of rungs: every combination, each checked, and nothing run or written before all are right."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe
from tests.unit.ladder.conftest import MakeLadder

from tunesmith.core.errors import RecipeError
from tunesmith.ladder.rungs import Ladder, correction, list_rungs, read_ladder, split_values, write_ladder


def listed(folder: Path, model: Path, *over: str, **settings: object) -> Ladder:
    return list_rungs(recipe(folder, model), over=over, **settings)  # type: ignore[arg-type]


def test_every_combination_is_a_rung_and_the_first_axis_is_the_slowest(tmp_path: Path, tokenizer_folder: Path) -> None:
    ladder = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", "data.train_rows=10,20,30", overrides=["seed=3"])
    assert [rung.label for rung in ladder.rungs][:4] == [
        "rank 2, train_rows 10",
        "rank 2, train_rows 20",
        "rank 2, train_rows 30",
        "rank 8, train_rows 10",
    ]
    assert [rung.number for rung in ladder.rungs] == [1, 2, 3, 4, 5, 6]
    assert ladder.rungs[3].folder == "04-rank-8_train_rows-10"
    assert [axis.measure for axis in ladder.axes] == ["trained_parameters", "train_rows"]


def test_models_come_first_and_are_named_in_full(tmp_path: Path, tokenizer_folder: Path, tiny: Path) -> None:
    models = [str(tokenizer_folder), str(tiny)]
    ladder = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", models=models)
    assert ladder.axes[0].measure == "model_parameters"
    assert ladder.rungs[2].label == f"{tiny}, rank 2"
    assert ladder.rungs[2].folder == f"03-base-{tiny.name}_rank-2"


def test_its_folder_follows_from_the_rungs(tmp_path: Path, tokenizer_folder: Path) -> None:
    one = listed(tmp_path, tokenizer_folder, "tuning.rank=2,8")
    assert one.path == listed(tmp_path, tokenizer_folder, "tuning.rank=2,8").path
    assert one.path != listed(tmp_path, tokenizer_folder, "tuning.rank=2,16").path
    assert one.path != listed(tmp_path, tokenizer_folder, "tuning.rank=2,8", overrides=["seed=1"]).path
    assert one.path.parent == Path("runs/tiny")


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
    ladder = listed(tmp_path, tokenizer_folder, "tuning={method: full},{method: lora, rank: 4}")
    assert ladder.rungs[1].label == "tuning {method: lora, rank: 4}"
    assert ladder.rungs[1].folder == "02-tuning-method-lora-rank-4"


def test_all_mistakes_of_all_rungs_are_told_at_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    axes = ("tuning.rnk=2,8", "train.learning_rate=0.1,-1,x", "data.train_rows=0,5")
    with pytest.raises(RecipeError) as told:
        listed(tmp_path, tokenizer_folder, *axes, out=tmp_path / "ladder")
    lines = str(told.value).splitlines()
    assert len(lines) == 4
    assert "tuning.rnk=2 and tuning.rnk=8: tuning.rnk: unknown key; did you mean `rank`?" in lines
    assert any(line.startswith("train.learning_rate=-1: ") for line in lines)
    assert any(line.startswith("train.learning_rate=x: ") for line in lines)
    assert any(line.startswith("data.train_rows=0: ") for line in lines)
    assert not (tmp_path / "ladder").exists()


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
        (["tuning.rank=4"], [], "two rungs at least"),
        ([], [], "two rungs at least"),
        (["tuning.rank=2,2"], [], "a value twice"),
        (["tuning.rank=2,,8"], [], "empty value"),
        (["tuning.rank=2,8"], ["tuning.rank=4"], "sets it too"),
        (["tuning.rank=2,8"], ["tuning={method: full}"], "sets it too"),
        (["tuning.rank=2,8", "tuning.rank=4,16"], [], "sets it too"),
        (["evaluate.rows=10,20"], [], "asked and judged alike"),
        (["promote.min_gain=0,1"], [], "asked and judged alike"),
        (["tuning.rank=" + ",".join(str(rank) for rank in range(1, 52))], [], "take 50 or fewer"),
    ],
)
def test_axes_that_make_no_sense_are_refused(
    tmp_path: Path, tokenizer_folder: Path, over: list[str], overrides: list[str], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        listed(tmp_path, tokenizer_folder, *over, overrides=overrides)


def test_fifty_rungs_are_not_too_many(tmp_path: Path, tokenizer_folder: Path) -> None:
    ladder = listed(tmp_path, tokenizer_folder, "tuning.rank=" + ",".join(str(rank) for rank in range(1, 51)))
    assert correction(0.95, len(ladder.rungs)) == pytest.approx(0.999)


def test_what_is_written_is_read_again(make_ladder: MakeLadder) -> None:
    ladder = make_ladder("tuning.rank=2,8", "train.epochs=1,2", overrides=["seed=4"])
    assert read_ladder(ladder.path) == ladder
    assert [ladder.recipe(rung).tuning.rank for rung in ladder.rungs] == [2, 2, 8, 8]  # type: ignore[union-attr]
    assert {ladder.recipe(rung).seed for rung in ladder.rungs} == {4}


def test_a_folder_of_something_else_is_left_alone(make_ladder: MakeLadder, tmp_path: Path) -> None:
    ladder = make_ladder()
    other = list_rungs(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=ladder.path)
    with pytest.raises(RecipeError, match="other axes"):
        write_ladder(other, tmp_path / "recipe.yaml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it", encoding="utf-8")
    other = list_rungs(tmp_path / "recipe.yaml", over=["tuning.rank=2,8"], out=tmp_path / "mine")
    with pytest.raises(RecipeError, match="holds no ladder"):
        write_ladder(other, tmp_path / "recipe.yaml")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_is_no_ladder(make_ladder: MakeLadder) -> None:
    ladder = make_ladder()
    with pytest.raises(RecipeError, match="holds no ladder"):
        read_ladder(ladder.run(ladder.rungs[0]).path)
