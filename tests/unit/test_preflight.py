"""What `plan` says is what will be done."""

from pathlib import Path

import pytest
from tests.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError
from tunesmith.pipeline import run_recipe
from tunesmith.preflight import plan_run

MIX = [
    "data.source=[{file: rows.jsonl, weight: 1.5}, {file: more.jsonl, name: more}]",
    "data.filters=[{column: tree, max: 15}]", "data.train_rows=0.7", "data.duplicates=drop",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    path = write_recipe(tmp_path, tiny)
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("Say", "Tell"))
    return path


def test_the_plan_counts_what_prepare_writes(recipe: Path) -> None:
    plan = plan_run(recipe, MIX)
    manifest = run_recipe(recipe, MIX, out=recipe.parent / "run", until="prepare").manifest("prepare")
    assert manifest is not None
    for key in ("sources", "filtered", "dropped", "unused", "blocks", "copies", "tokens", "lengths"):
        assert getattr(plan, key) == manifest[key]
    assert plan.counts == {split: manifest["counts"][split] for split in ("train", "valid", "test")}
    assert plan.steps.train_rows == plan.counts["train"]


def test_the_plan_shows_sources_filters_lengths_and_copies(recipe: Path) -> None:
    lines = {line.split()[0]: line for line in str(plan_run(recipe, MIX)).splitlines()}
    assert "filtered 24 x `tree` is above 15" in lines["rows"]
    assert lines["source"].startswith("source   more: train ")
    assert "\u2588" in lines["lengths"]
    assert "test rows in train 0 + 0 nearly" in lines["copies"]
    assert "source" not in str(plan_run(recipe))


def test_a_plan_stops_where_the_run_would(recipe: Path) -> None:
    with pytest.raises(DataError, match="filters leave none of the 60 rows"):
        plan_run(recipe, ["data.filters=[{column: answer, equals: nothing}]"])


def test_the_plan_says_what_is_in_blocks_and_what_is_left_out(recipe: Path) -> None:
    text = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 12, "
            "too_long: split, leakage: drop, near_copy: 0.5}")  # fmt: skip
    plan = plan_run(recipe, [text])
    lines = {line.split()[0]: line for line in str(plan).splitlines()}
    assert plan.blocks["documents"] == 60
    assert f"; 60 documents in {plan.blocks['blocks']} blocks" in lines["rows"]
    assert plan.longest == 12
    (recipe.parent / "rows.jsonl").write_text(
        "".join(f'{{"question": "Say one {i}.", "answer": "one", "fold": "{"train" if i % 9 else "test"}"}}\n'
                for i in (*range(18), *range(1, 4))) + '{"question": "Say one 5.", "answer": "one", "fold": "test"}\n'
    )  # fmt: skip
    plan = plan_run(recipe, [text.replace("near_copy: 0.5", "split: {column: fold}")])
    rows, copies = (next(line for line in str(plan).splitlines() if line.startswith(name)) for name in ("rows", "copi"))
    assert f"unused {plan.unused['says what a test row says']} x says what a test row says" in rows
    assert copies.endswith("test rows in train 0 + 0 nearly, left out of train 1 + 0 nearly")


def test_the_plan_says_what_validation_asks_and_what_chooses(recipe: Path) -> None:
    asking = ["train.valid_metrics=[rougeL]", "train.choose_by=rougeL", "train.valid_rows=3"]
    assert "validation every 1, answering 3 rows, checkpoint every 1, the best by rougeL" in str(
        plan_run(recipe, asking)
    )
    assert plan_run(recipe, [*asking[:2], "train.valid_rows=999"]).answered == plan_run(recipe).counts["valid"] > 3
    assert "validation every 1, checkpoint every 1, the best by loss" in str(plan_run(recipe))
