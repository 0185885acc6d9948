"""The plan of a prepared run: its rows are those of `prepare`, so it needs no sources and stays the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from tests.support.tiny import tree
from tests.unit.plan.conftest import MIX

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan.run_plan import RunPlan, plan_run

BLOCKS = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 12, "
          "too_long: split, split: {valid: 0.1, test: 0.2}}")  # fmt: skip
REMARKS = ("data={source: {file: rows.jsonl}, task: chat, prompt: '{question} {note?}', response: '{answer}', "
           "split: {valid: 0.3, test: 0.3}}")  # fmt: skip
PREPARED = {
    "mixed": MIX,
    "blocks": [BLOCKS, "evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"],
    "truncated": ["data.max_tokens_per_example=38", "data.too_long=truncate", "data.near_duplicate_threshold=0.5"],
    "remarks": [REMARKS, "train.valid_metrics=[chrf]", "evaluate.metrics=[rougeL, perplexity]"],
    "slurm": ["launch.on=slurm", "launch.nodes=2", "promote={model: x}"],
}


def without_folder(plan: RunPlan) -> RunPlan:
    """Return a plan without the state of its stages and without the run's folder."""
    return replace(plan, stages={}, run="", scripts={})


@pytest.mark.usefixtures("same_machine")
@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_run_has_the_same_plan_with_and_without_its_sources(
    recipe: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, changes = recipe.parent / "rows.jsonl", PREPARED[name]
    if name == "remarks":
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        remarkable = [
            {**line, "question": "Say <|im_end|>." if i < 30 else line["question"], "note": ""}
            for i, line in enumerate(lines)
        ]
        rows.write_text("".join(json.dumps(line) + "\n" for line in remarkable))

    def plan_and_log() -> tuple[RunPlan, str]:
        capsys.readouterr()
        plan = plan_run(recipe, changes, out=recipe.parent / "run")
        return plan, capsys.readouterr().err

    before, log = plan_and_log()
    assert set(before.stages.values()) == {"to do"}
    assert bool(before.rows.cut) == (name == "truncated")
    assert [("control tokens" in log), ("`note`" in log)] == 2 * [name == "remarks"]
    run = run_recipe(recipe, changes, out=recipe.parent / "run", until="prepare")
    files = tree(run.path)
    after = plan_and_log()
    for source in ("rows.jsonl", "more.jsonl"):
        (recipe.parent / source).unlink()
    without_sources = plan_and_log()
    assert after == without_sources
    assert after == (replace(before, stages={**before.stages, "prepare": "done"}), log)
    assert json.loads(json.dumps(without_sources[0].to_json())) == json.loads(json.dumps(after[0].to_json()))
    assert tree(run.path) == files


@pytest.mark.usefixtures("same_machine")
def test_a_prepared_run_is_planned_after_it_was_moved(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    for name in ("recipe.yaml", "rows.jsonl"):
        (tmp_path / name).rename(project / name)
    first = without_folder(plan_run(project / "recipe.yaml"))
    run = run_recipe(project / "recipe.yaml", until="prepare")
    (project / "rows.jsonl").unlink()
    (tmp_path / "link").symlink_to(project)
    copied = copytree(run.path, tmp_path / "other" / "place")
    for path in (project / "recipe.yaml", tmp_path / "link" / "recipe.yaml", run.path, copied):
        plan = plan_run(path)
        assert plan.stages["prepare"] == "done"
        assert without_folder(plan) == first
    project.rename(tmp_path / "renamed")
    assert without_folder(plan_run(run.path)) == first
    (tmp_path / "renamed" / "recipe.yaml").unlink()
    assert without_folder(plan_run(copied)) == first


@pytest.mark.parametrize("function", [plan_run, run_recipe])
def test_a_changed_recipe_needs_the_sources_again(recipe: Path, function: Callable[..., object]) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").unlink()
    before = tree(recipe.parent)
    with pytest.raises(DataError) as missing:
        function(recipe, ["data.train_rows=9"], out=recipe.parent / "new")
    assert (missing.value.exit_code, "rows.jsonl" in str(missing.value)) == (3, True)
    for path, out in ((run.path, None), (recipe, run.path)):
        with pytest.raises(RecipeError) as changed:
            function(path, ["data.train_rows=9"], out=out)
        assert "data.train_rows" in str(changed.value)
    assert tree(recipe.parent) == before


def test_plan_refuses_sources_that_changed_since_prepare(recipe: Path) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").write_text("no row at all")
    with pytest.raises(RecipeError) as caught:
        plan_run(recipe, out=run.path)
    assert "source" in str(caught.value)


def test_added_metrics_are_rehearsed_on_prepared_rows(recipe: Path) -> None:
    run = run_recipe(recipe, out=recipe.parent / "run", until="prepare")
    (recipe.parent / "rows.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        plan_run(run.path, ["evaluate.metrics=[json_field_f1]", "evaluate.primary=json_field_f1"])
    assert str(caught.value.where).startswith("rows.jsonl:")
    assert "JSON" in str(caught.value)
