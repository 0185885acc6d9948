"""The exports of a recipe, refused before anything is trained."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe, save_model

from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir
from tunesmith.export.formats import Options
from tunesmith.export.requests import check_base_for_exports, check_requests, requests_of
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.pipeline.runs import identity
from tunesmith.pipeline.stage_state import wanted_stages
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe


def loaded(folder: Path, *exports: dict[str, Any], **changes: Any) -> tuple[Recipe, RunDir]:
    file = recipe(folder, folder / "base", export=list(exports), **changes)
    return load_recipe(file), RunDir(folder / "run", folder)


def test_folders_are_in_the_run_or_relative_to_the_recipe(tmp_path: Path) -> None:
    read, run = loaded(
        tmp_path,
        {"to": "merged", "type": "bf16"},
        {"to": "gguf", "out": "files/q8", "type": "q8_0"},
        {"to": "gguf", "adapter_only": True},
        {"to": "adapter", "readers": ["peft"], "repo": "org/name"},
    )
    found = list(requests_of(read, run))
    assert [request.folder for request in found] == [
        run.exported("merged-bf16"), tmp_path / "files/q8", run.exported("gguf-lora"), run.exported("adapter"),
    ]  # fmt: skip
    assert [request.is_in_run for request in found] == [True, False, True, True]
    assert [request.options for request in found] == [
        Options(type="bf16"), Options(type="q8_0"), Options(adapter_only=True),
        Options(readers=("peft",), repo="org/name"),
    ]  # fmt: skip


DORA = {"method": "lora", "rank": 4, "alpha": 8, "dora": True}
FULL = {"method": "full"}


@pytest.mark.parametrize(
    ("exports", "changes", "code"),
    [
        ([{"to": "onnx"}], {}, "wrong-value"),
        ([{"to": "merged", "type": "q8_0"}], {}, "wrong-value"),
        ([{"to": "merged", "readers": ["peft"]}], {}, "unknown-key"),
        ([], {}, "wrong-value"),
        ([{"to": "merged"}, {"to": "merged"}], {}, "contradiction"),
        ([{"to": "gguf", "type": "q4_k_m"}], {}, "contradiction"),
        ([{"to": "gguf", "quantize_with": "llama-quantize"}], {}, "contradiction"),
        ([{"to": "adapter"}], {"tuning": FULL}, "contradiction"),
        ([{"to": "adapter"}], {"tuning": DORA}, "contradiction"),
        ([{"to": "gguf", "adapter_only": True}], {"tuning": DORA}, "contradiction"),
        ([{"to": "merged", "repo": "no-owner"}], {}, "wrong-value"),
        ([{"to": "merged", "repo": "org/name"}, {"to": "gguf", "repo": "org/name"}], {}, "contradiction"),
    ],
)
def test_a_wrong_export_is_a_mistake_in_the_recipe(
    tmp_path: Path, exports: list[dict[str, Any]], changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(tmp_path, *exports, **changes)
    assert caught.value.code == code, caught.value


def test_dora_and_full_models_are_exported_where_they_can_be_read(tmp_path: Path) -> None:
    loaded(tmp_path, {"to": "adapter", "readers": ["peft"]}, {"to": "merged"}, tuning=DORA)
    loaded(tmp_path, {"to": "merged"}, {"to": "gguf"}, tuning=FULL)


def test_a_folder_with_something_else_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    read, run = loaded(tmp_path, {"to": "merged", "out": "mine"})
    with raises(RecipeError, "exists", "export.0.out"):
        check_requests(read, run)


def test_a_missing_program_and_an_unknown_architecture_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, run = loaded(tmp_path, {"to": "gguf"})
    known, unknown = (ModelFolder(kind, save_model(tmp_path / kind, kind)) for kind in ("llama", "phi"))
    check_base_for_exports(read, known)
    with raises(RecipeError, "gguf-unsupported", "phi"):
        check_base_for_exports(read, unknown)
    check_base_for_exports(loaded(tmp_path, {"to": "merged"})[0], unknown)
    tokenizer = json.loads((known.path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (known.path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with raises(RecipeError, "gguf-unsupported"):
        check_base_for_exports(read, known)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with raises(RecipeError, "missing-package", "gguf-proof"):
        check_requests(read, run)


def test_an_export_of_another_run_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/manifest.json").write_text("{}")
    read, run = loaded(tmp_path, {"to": "merged", "out": "mine"})
    with raises(RecipeError, "exists", "export.0.out"):
        check_requests(read, run)
    (run.stage("train")).mkdir(parents=True)
    (run.stage("train") / "manifest.json").write_text("{}")
    check_requests(read, run)


def test_a_missing_quantizer_is_refused_before_training(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    read, run = loaded(tmp_path, {"to": "gguf", "type": "q4_k_m", "quantize_with": "bin/llama-quantize"})
    with raises(RecipeError, "not-found", where=str(tmp_path / "bin/llama-quantize")):
        check_requests(read, run)
    program = tmp_path / "bin/llama-quantize"
    program.parent.mkdir()
    program.touch(mode=0o755)
    check_requests(read, run)


@pytest.mark.parametrize("export", [{"to": "adapter"}, {"to": "gguf", "adapter_only": True}])
def test_an_adapter_on_an_adapter_is_refused_before_training(tmp_path: Path, export: dict[str, Any]) -> None:
    root = ModelFolder("root", save_model(tmp_path / "root", "llama"))
    read, _ = loaded(tmp_path, export)
    check_base_for_exports(read, root)
    with raises(RecipeError, "adapter-unsupported", where="export.0"):
        check_base_for_exports(read, ModelFolder("adapter", tmp_path / "adapter", base=root))


def test_an_adapter_in_a_repository_needs_a_base_on_the_hub(tmp_path: Path) -> None:
    base = ModelFolder("base", save_model(tmp_path / "base", "llama"))
    with raises(RecipeError, "adapter-unsupported", "org/name"):
        check_base_for_exports(loaded(tmp_path, {"to": "adapter", "repo": "org/name"})[0], base)
    alone = {"to": "gguf", "adapter_only": True, "repo": "org/name"}
    check_base_for_exports(loaded(tmp_path, alone)[0], base)  # its base is any GGUF file


def test_export_is_the_last_stage_if_the_recipe_asks_for_it(tmp_path: Path) -> None:
    stages = wanted_stages(loaded(tmp_path, {"to": "merged"})[0])
    assert [stage.name for stage in stages] == ["prepare", "train", "evaluate", "export"]
    assert stages[-1].command == "run"  # of its Slurm job, on one process
    assert not stages[-1].on_all_ranks
    assert "export" not in [stage.name for stage in wanted_stages(load_recipe(recipe(tmp_path, tmp_path / "base")))]


def test_exports_can_be_added_to_a_finished_run(tmp_path: Path) -> None:
    without = load_recipe(recipe(tmp_path, tmp_path / "base"))
    assert identity(without) == identity(loaded(tmp_path, {"to": "merged"})[0])
