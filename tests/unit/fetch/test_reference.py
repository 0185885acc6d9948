"""A model on the hub is found in its cache, whole or in part."""

import json
from pathlib import Path
from shutil import copy

import pytest
from huggingface_hub import constants

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import hub_cache, resolve
from tunesmith.registry.store import Registry


@pytest.fixture
def snapshot(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the cache holds of org/name after a plan: everything but the weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--org--name" / "snapshots" / "0123"
    place.mkdir(parents=True)
    (place.parents[1] / "refs").mkdir()
    (place.parents[1] / "refs" / "main").write_text("0123")
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            copy(file, place)
    return place


def test_a_plan_needs_no_weights_and_training_does(snapshot: Path, tiny: Path) -> None:
    found = resolve("org/name", weights=False)
    assert (found.path, found.to_fetch, found.has_weights) == (snapshot, True, False)
    with pytest.raises(RecipeError, match=r"weights of `org/name` are not here, or not as \*\.safetensors"):
        resolve("org/name")
    copy(tiny / "model.safetensors", snapshot)
    for weights in (False, True):
        whole = resolve("org/name", weights=weights)
        assert (whole.path, whole.to_fetch, whole.has_weights) == (snapshot, False, True)


def test_an_adapter_s_base_is_looked_for_in_the_same_way(snapshot: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/name"}))
    assert resolve(str(adapter), weights=False).root.to_fetch
    with pytest.raises(RecipeError, match="are not here"):
        resolve(str(adapter))


def test_what_was_never_fetched_is_told(snapshot: Path) -> None:
    assert hub_cache() == snapshot.parents[2]
    with pytest.raises(RecipeError, match="`org/other` is not in the cache"):
        resolve("org/other", weights=False)


def test_a_registered_name_without_an_alias_is_completed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "registry"))
    with pytest.raises(RecipeError) as unknown:
        resolve("wikisql")
    assert "wikisql@" not in str(unknown.value.hint)
    registry = Registry.default()
    version = registry.add("wikisql", tiny, facts={})
    registry.move("wikisql", "staging", version.number, verdict=None, reason=None)
    with pytest.raises(RecipeError) as caught:
        resolve("wikisql")
    assert caught.value.hint == "did you mean `wikisql@staging` or `wikisql@1`?"


def test_a_run_s_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text("name: x\n")
    with pytest.raises(RecipeError) as caught:
        resolve(str(run))
    assert caught.value.where == str(run)
    assert "training" in caught.value.message  # it is taken for a run, whose training has not finished
