"""Models of the hub are found in its cache, with or without weights, and references have useful hints."""

import json
from pathlib import Path
from shutil import copy

import pytest
from huggingface_hub import constants
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import hub_cache, resolve
from tunesmith.registry.store import Registry


@pytest.fixture
def snapshot(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of org/name after `plan`: all files but the weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0123")
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            copy(file, folder)
    return folder


def test_weights_are_only_required_if_they_are_needed(snapshot: Path, tiny: Path) -> None:
    found = resolve("org/name", weights=False)
    assert (found.path, found.to_fetch, found.has_weights) == (snapshot, True, False)
    with raises(RecipeError, "no-weights", "org/name", where=str(snapshot)):
        resolve("org/name")
    copy(tiny / "model.safetensors", snapshot)
    for weights in (False, True):
        whole = resolve("org/name", weights=weights)
        assert (whole.path, whole.to_fetch, whole.has_weights) == (snapshot, False, True)


def test_the_base_of_an_adapter_is_found_in_the_cache(snapshot: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/name"}))
    assert resolve(str(adapter), weights=False).root.to_fetch
    with raises(RecipeError, "no-weights", "org/name"):
        resolve(str(adapter))


def test_a_model_that_is_not_in_the_cache_is_refused_offline(snapshot: Path) -> None:
    assert hub_cache() == snapshot.parents[2]
    with raises(RecipeError, "fetch-failed", "org/other"):
        resolve("org/other", weights=False)


def test_the_hint_completes_a_registered_name_without_alias(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "registry"))
    with raises(RecipeError, "unknown-model", "wikisql") as unknown:
        resolve("wikisql")
    assert "wikisql@" not in str(unknown.value.hint)
    registry = Registry.default()
    version = registry.add("wikisql", tiny, facts={})
    registry.move("wikisql", "staging", version.number, verdict=None, reason=None)
    with raises(RecipeError, "unknown-model") as caught:
        resolve("wikisql")
    assert caught.value.hint == "did you mean `wikisql@staging` or `wikisql@1`?"


def test_the_folder_of_a_run_is_resolved_to_its_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text("name: x\n")
    with raises(RecipeError, "not-trained", where=str(run)):
        resolve(str(run))
