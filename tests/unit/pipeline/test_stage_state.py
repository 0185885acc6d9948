"""A stage is done if its inputs are those that its manifest recorded, whatever version of tunesmith wrote it."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.support.earlier_versions import record, with_value, without
from tests.support.errors import raises
from tests.support.tiny import recipe, tree

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import EVALUATE, PREPARE, REPLICATE, TRAIN
from tunesmith.pipeline.runner import finished_stages, run_recipe
from tunesmith.pipeline.stage_state import changed_inputs, stage_inputs, stage_states, wanted_stages
from tunesmith.plan.run_plan import plan_run
from tunesmith.recipe.base import Section
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe

VALIDATING = ["train.valid_metrics=[chrf]"]
DONE = {"prepare": "done", "train": "done", "evaluate": "done"}


@pytest.fixture
def done(tmp_path: Path, tiny: Path) -> RunDir:
    """A prepared run, with manifests of the later stages as if they had run."""
    run = run_recipe(recipe(tmp_path, tiny), VALIDATING, out=tmp_path / "run", until="prepare")
    loaded = load_recipe(run.resolved_recipe)
    for stage in (TRAIN, EVALUATE):
        write_json(run.stage(stage.name) / "manifest.json", {"inputs": stage_inputs(stage, loaded, run), "files": {}})
    return run


def keys_with_a_default(inputs: dict[str, Any], loaded: Recipe) -> Iterator[str]:
    """Yield the dotted keys of a stage's inputs that a recipe may leave out."""
    for name, value in inputs.items():
        section = getattr(loaded, name, None)
        if isinstance(value, dict) and isinstance(section, Section):
            fields = type(section).model_fields
            yield from (f"{name}.{key}" for key in value if not fields[key].is_required())


def test_stage_is_done_if_its_record_lacks_a_key_at_its_default(done: RunDir) -> None:
    loaded = load_recipe(done.resolved_recipe)
    checked = set()
    for stage in (PREPARE, TRAIN, EVALUATE):
        path, manifest = done.stage(stage.name) / "manifest.json", done.manifest(stage.name)
        assert manifest is not None
        for key in keys_with_a_default(manifest["inputs"], loaded):
            change = deepcopy(manifest)
            without(key)(change["inputs"])
            write_json(path, change)
            section, name = key.split(".")
            field = type(getattr(loaded, section)).model_fields[name]
            is_default = getattr(getattr(loaded, section), name) == field.default
            changes = changed_inputs(stage, loaded, done)
            assert changes is not None
            assert (changes == []) == is_default, (stage.name, key)
            checked.add(key)
        write_json(path, manifest)
    assert {"data.leakage", "tuning.target", "train.beta1", "evaluate.beams", "decoding.beams"} < checked
    assert stage_states(loaded, done) == DONE


@pytest.mark.parametrize(
    ("recorded", "changes", "evaluate"),
    [
        (without("evaluate.confidence"), [], "done"),
        (without("evaluate.confidence"), ["evaluate.confidence=0.9"], "to do again (evaluate.confidence changed)"),
        (with_value("evaluate.confidence", 0.9), [], "to do again (evaluate.confidence changed)"),
        (with_value("evaluate.gone", 1), [], "to do again (evaluate.gone changed)"),
        (with_value("evaluate.gone", None), [], "done"),
    ],
)
def test_plan_shows_the_stage_that_a_new_key_repeats(
    done: RunDir, recorded: Callable[[dict[str, Any]], None], changes: list[str], evaluate: str
) -> None:
    manifest = done.manifest("evaluate")
    assert manifest is not None
    recorded(manifest["inputs"])
    write_json(done.stage("evaluate") / "manifest.json", manifest)
    assert plan_run(done.path, changes).stages == {**DONE, "evaluate": evaluate}


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_other_input_of_prepare_or_train_is_refused(done: RunDir, stage: str) -> None:
    key = {"prepare": "data.leakage", "train": "train.beta1"}[stage]
    manifest = done.manifest(stage)
    assert manifest is not None
    with_value(key, "another")(manifest["inputs"])
    write_json(done.stage(stage) / "manifest.json", manifest)
    before = tree(done.path)
    for act in (plan_run, run_recipe):
        with raises(RecipeError, "inputs-changed", stage, key, where=str(done)):
            act(done.path)
    assert tree(done.path) == before


def test_run_of_an_earlier_version_is_done(done: RunDir) -> None:
    for key in ("data.source.quote", "data.split.by", "tuning.dora", "train.valid_loss_rows", "evaluate.guards"):
        record(done, without(key))
    assert plan_run(done.path).stages == DONE


RECORDED: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "as now": (lambda inputs: inputs, []),
    "without a key": (lambda inputs: without("train.beta1")(inputs) or inputs, []),
    "as a digest": (digest_of, []),
    "another value": (lambda inputs: with_value("train.beta1", 0.5)(inputs) or inputs, ["train.beta1"]),
    "another digest": (lambda _: digest_of("other"), [""]),
}


@pytest.mark.parametrize("case", RECORDED)
def test_interrupted_training_resumes_only_with_its_inputs(done: RunDir, case: str) -> None:
    (done.stage("train") / "manifest.json").unlink()
    recorded, changed = RECORDED[case]
    loaded = load_recipe(done.resolved_recipe)
    inputs = recorded(stage_inputs(TRAIN, loaded, done))
    write_json(done.checkpoint(2) / "state.json", {"step": 2, "inputs": inputs})
    for act in (lambda: plan_run(done.path), lambda: finished_stages(loaded, done)):
        if not changed:
            act()
            continue
        with pytest.raises(RecipeError) as error:
            act()
        assert changed[0] in str(error.value)
        assert error.value.where == str(done.checkpoint(2))


def test_further_seeds_are_trained_only_if_the_recipe_asks_for_them(tmp_path: Path) -> None:
    file = recipe(tmp_path, tmp_path / "model")
    plain, several = load_recipe(file), load_recipe(file, ["replicates=3", "seed=7"])
    assert [stage.name for stage in wanted_stages(plain)] == ["prepare", "train", "evaluate"]
    assert [stage.name for stage in wanted_stages(several, "evaluate")] == ["prepare", "train", "replicate", "evaluate"]
    assert (plain.further_seeds, several.further_seeds) == ((), (8, 9))
    with raises(RecipeError, "missing-key"):
        wanted_stages(plain, "replicate")


def test_the_number_of_seeds_is_an_input_of_the_verdict_but_not_of_training(done: RunDir) -> None:
    loaded = load_recipe(done.resolved_recipe, [*VALIDATING, "replicates=3"])
    assert stage_states(loaded, done) == {
        **DONE,
        "replicate": "to do",
        "evaluate": "to do again (replicate, seeds changed)",
    }
    write_json(
        done.stage("replicate") / "manifest.json", {"inputs": stage_inputs(REPLICATE, loaded, done), "files": {}}
    )
    assert stage_states(loaded, done)["replicate"] == "done"
    four = load_recipe(done.resolved_recipe, [*VALIDATING, "replicates=4"])
    assert stage_states(four, done)["replicate"] == "to do again (seeds changed)"
