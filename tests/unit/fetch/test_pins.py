"""The base of a model is found after a run, a base or a registry was moved, and no other model is taken for it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json, seal_folder, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.model_folder import model_files
from tunesmith.fetch.pin import Pin, pin_to_store
from tunesmith.fetch.reference import (
    CARD,
    ModelFolder,
    base_card,
    name_for_peft,
    pinned_base,
    resolve,
    resolve_base,
    resolve_tuned,
)
from tunesmith.registry.store import Registry

ODD = ["a#b", "C#", "x#12", "a@b", "a b", "[x]", "100%", "a\nb", "a::b", "pypi:x", "org/name", "-x"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def model(folder: Path, weights: str = "base") -> Path:
    """Write a folder that looks like a model; its weights are not read."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_text(weights)
    return folder


def trained(run: RunDir, base: ModelFolder, weights: str, step: int = 5) -> ModelFolder:
    """Write the files of a run that trained an adapter on `base`; return the adapter."""
    checkpoint = run.checkpoint(step)
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base.reference}))
    (checkpoint / "model" / "adapter_model.safetensors").write_text(weights)
    write_json(checkpoint / "model" / CARD, base_card(base, checkpoint / "model"))
    seal_folder(checkpoint)
    write_json(run.environment, {"recipe_folder": os.path.relpath(Path.cwd(), run.path)})
    run.resolved_recipe.write_text("name: x\n")
    run.stage("prepare").mkdir(exist_ok=True)
    seal_folder(run.stage("prepare"), base=pinned_base(run, base), inputs={})
    seal_folder(run.stage("train"), best_step=step)
    return resolve_tuned(run)


def promoted(name: str, tuned: ModelFolder, **facts: Any) -> str:
    registry = Registry.default()
    version = registry.add(name, tuned.path, facts={"model_digest": tuned.digest(), **facts})
    registry.move(name, "staging", version.number, verdict=None, reason=None)
    return f"{name}@{version.number}"


def test_training_on_the_alias_that_is_promoted_to_gives_a_chain_of_versions(tmp_path: Path) -> None:
    model(tmp_path / "base")
    first = trained(RunDir(tmp_path / "r1"), resolve("base"), "one")
    assert promoted("loop", first) == "loop@1"
    second = trained(RunDir(tmp_path / "r2"), resolve("loop@staging"), "two")
    assert promoted("loop", second) == "loop@2"
    third = trained(RunDir(tmp_path / "r3"), resolve("loop@staging"), "three")
    for reference in ("loop@staging", "loop@2", "run:r2"):
        found = resolve(reference)
        assert found.base is not None
        assert found.base.path == resolve("loop@1").path
        assert found.root.path.samefile(tmp_path / "base")
    assert third.base is not None
    assert third.base.digest() == second.digest()


def test_a_run_keeps_the_version_of_its_alias_after_the_alias_moved(tmp_path: Path) -> None:
    model(tmp_path / "base")
    promoted("m", trained(RunDir(tmp_path / "r1"), resolve("base"), "one"))
    run = RunDir(tmp_path / "r2")
    trained(run, resolve("m@staging"), "two")
    before = resolve_base(run, "m@staging").digest()
    promoted("m", trained(RunDir(tmp_path / "r3"), resolve("base"), "three"))
    assert resolve("m@staging").digest() != before
    assert resolve_base(run, "m@staging").digest() == before
    assert read_json(run.stage("prepare") / "manifest.json")["base"]["pin"]["at"] == "m@1"
    assert resolve_tuned(run).root.path.samefile(tmp_path / "base")


def test_a_card_with_an_alias_finds_its_base_by_digest(tmp_path: Path) -> None:
    """Cards of older runs have the alias as typed, which can point at any version now, even at the model itself."""
    model(tmp_path / "base")
    promoted("loop", trained(RunDir(tmp_path / "r1"), resolve("base"), "one"))
    second = trained(RunDir(tmp_path / "r2"), resolve("loop@staging"), "two")
    card = read_json(second.path / CARD)
    write_json(second.path / CARD, {"base": "loop@staging", "base_digest": card["base_digest"]})
    seal_folder(second.path.parent)
    promoted("loop", resolve_tuned(RunDir(tmp_path / "r2")))
    found = resolve("loop@staging")
    assert found.base is not None
    assert found.base.path == resolve("loop@1").path


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with raises(RecipeError, "base-cycle", where="adapter"):
        resolve(str(folder))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    with raises(RecipeError, "base-cycle", where="other"):
        resolve(str(other))


def test_a_relative_base_opens_from_any_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(tmp_path / "models" / "tiny")
    (tmp_path / "exp").mkdir()
    found = resolve("../models/tiny", relative_to=tmp_path / "exp")
    tuned = trained(RunDir(tmp_path / "runs" / "r"), found, "tuned")
    pins = (
        [tuned.base.pin.relative_to_folder(Registry.default().root).to_json()] if tuned.base and tuned.base.pin else []
    )
    promoted("rel", tuned, base_pins=pins)
    model(tmp_path / "elsewhere" / "models" / "tiny", "another")  # at the same relative path
    (tmp_path / "elsewhere" / "exp").mkdir()
    for folder in ("/", str(tmp_path / "elsewhere" / "exp")):
        monkeypatch.chdir(folder)
        for reference in ("rel@staging", f"run:{tmp_path}/runs/r", str(Registry.default().root / "models/rel/1")):
            shutil.rmtree(tmp_path / "cache")  # which has the folders on record
            assert resolve(reference).root.path.samefile(base)


@pytest.mark.parametrize("how", ["moved run", "moved base", "moved both"])
def test_a_moved_run_or_base_is_found_by_its_digest(tmp_path: Path, how: str) -> None:
    base = model(tmp_path / "a" / "base")
    run = RunDir(tmp_path / "a" / "b" / "run")
    digest = trained(run, resolve("base", relative_to=tmp_path / "a"), "tuned").digest()
    if how != "moved run":
        base.rename(tmp_path / "base")
        resolve(str(tmp_path / "base")).digest()
    if how != "moved base":
        run.path.rename(tmp_path / "zipped")
        run = RunDir(tmp_path / "zipped")
    assert resolve_tuned(run).digest() == digest
    assert resolve_base(run, "base").root.has_weights


def test_a_missing_base_and_a_changed_base_give_different_errors(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    run = RunDir(tmp_path / "run")
    trained(run, resolve("base"), "tuned")
    (base / "model.safetensors").write_text("other")
    with raises(RecipeError, "base-changed", "base"):
        resolve_tuned(run)
    shutil.rmtree(base)
    with raises(RecipeError, "not-found", base):
        resolve_tuned(run)
    with raises(RecipeError, "not-found", base):
        resolve_base(run, "base")


def test_a_changed_base_of_a_run_has_another_digest(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    run = RunDir(tmp_path / "run")
    before = trained(run, resolve("base"), "tuned").base
    (base / "model.safetensors").write_text("other")
    assert before is not None
    assert resolve_base(run, "base").digest() != read_json(run.stage("prepare") / "manifest.json")["base"]["digest"]


@pytest.mark.parametrize("name", ODD)
def test_paths_are_never_parsed(tmp_path: Path, name: str) -> None:
    base = model(tmp_path / name / "base")
    run = RunDir(tmp_path / name / "run#1")
    tuned = trained(run, resolve("base", relative_to=base.parent), "tuned")
    assert tuned.root.path.samefile(base)
    assert resolve(f"run:{run.path}").path == tuned.path
    assert resolve(f"run:{run.path}#5").path == tuned.path
    assert resolve(str(run.path)).path == tuned.path
    moved = RunDir(run.path.rename(tmp_path / name / "moved"))
    assert resolve_tuned(moved).root.path.samefile(base)


def test_a_folder_whose_name_ends_like_a_step_takes_precedence(tmp_path: Path) -> None:
    model(tmp_path / "base")
    trained(RunDir(tmp_path / "x#12"), resolve("base"), "whole")
    assert resolve("run:x#12").path.parent.name == "step-000005"
    trained(RunDir(tmp_path / "x"), resolve("base"), "step", step=12)
    assert resolve("run:x#12").path.parents[3] == Path("x#12")


@pytest.mark.parametrize(
    "extra", ["README.md", ".DS_Store", "pytorch_model.bin", "onnx", "LICENSE.txt", "trainer_state.json", "tf_model.h5"]
)
def test_unrelated_files_do_not_change_the_digest(tmp_path: Path, extra: str) -> None:
    base = model(tmp_path / "base")
    run = RunDir(tmp_path / "run")
    tuned = trained(run, resolve("base"), "tuned").digest()
    (base / extra).write_text("new") if extra != "onnx" else (base / extra).mkdir()
    assert resolve_tuned(run).digest() == tuned


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer.model"]
)
def test_configuration_and_tokenizer_files_change_the_digest(tmp_path: Path, name: str) -> None:
    base = model(tmp_path / "base")
    before = resolve("base").digest()
    (base / name).write_text('{"model_type": "gpt2"}')
    assert resolve("base").digest() != before


def test_only_the_weight_files_that_are_read_are_in_the_digest(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    (base / "consolidated.safetensors").write_text("the same in another format")
    assert [path.name for path in model_files(base)] == ["config.json", "model.safetensors"]
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert [path.name for path in model_files(base)][1:] == ["model-1.safetensors", "model.safetensors.index.json"]


@pytest.mark.parametrize(
    "pin", [Pin("registry", "loop@3"), Pin("pypi", "x"), Pin("run", "r", "7"), Pin("gguf", "m.gguf")]
)
def test_peft_gets_a_name_on_the_hub_or_a_folder(tmp_path: Path, pin: Pin) -> None:
    hub = ModelFolder("a", tmp_path / "snapshot", pin=Pin("hub", "org/name", "0" * 40))
    assert name_for_peft(hub) == ("org/name", "0" * 40)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert name_for_peft(ModelFolder("a", tmp_path / "link", pin=pin)) == (str(tmp_path / "real"), None)
    assert name_for_peft(ModelFolder("a", Path("relative"))) == (str(tmp_path / "relative"), None)


def test_a_relative_base_of_a_run_stays_relative_for_peft(tmp_path: Path) -> None:
    base, adapter = model(tmp_path / "models" / "m"), tmp_path / "runs" / "r" / "model"
    assert name_for_peft(resolve("models/m"), adapter) == ("../../../models/m", None)
    assert name_for_peft(resolve(str(base)), adapter) == (str(base), None)
    assert name_for_peft(resolve("models/m")) == (str(base), None)


def test_a_path_is_stored_as_it_was_typed(tmp_path: Path) -> None:
    at = Pin("folder", str(tmp_path / "models" / "m"))
    assert pin_to_store(tmp_path / "runs" / "r", at, "../models/m").at == "../../models/m"
    assert pin_to_store(tmp_path / "runs" / "r", at, at.at).at == at.at
    run = Pin("run", str(tmp_path / "first#1"), "7")
    assert pin_to_store(tmp_path / "r", run, "run:first#1#7") == Pin("run", "../first#1", "7")
    assert pin_to_store(tmp_path / "r", run, f"run:{tmp_path}/first#1#7") == run
    assert pin_to_store(tmp_path / "r", run, f"run:{tmp_path}/first#1") == run
    assert Pin(**run.relative_to_folder(tmp_path).to_json()).absolute_in(tmp_path) == run
