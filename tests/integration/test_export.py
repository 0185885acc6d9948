"""Exports of a tuned model: proved and published as a whole, refused, forced, resumed, and as a stage of a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.cases import Command
from tests.support.errors import raises
from tests.support.fake_hub import fake_hub
from tests.support.tiny import change_weights, recipe, save_model, tree

from tunesmith import export_model, open_chatter, run_recipe
from tunesmith.core.errors import DoesNotFit, NotProved, RecipeError
from tunesmith.core.files import check_folder
from tunesmith.core.rundir import RunDir
from tunesmith.export import merged
from tunesmith.fetch.reference import resolve
from tunesmith.pipeline.stage_state import stage_states
from tunesmith.proof.record import read_proof
from tunesmith.recipe.load import load_recipe

EXPORTS = [{"to": "merged"}, {"to": "adapter", "out": "adapter"}]
TRAIN = {"learning_rate": 0.01, "max_steps": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its base, and its run, which exported a merged model and an adapter."""
    folder = tmp_path_factory.mktemp("exported")
    base = save_model(folder / "base", "llama")
    file = recipe(folder, base, train=TRAIN, export=EXPORTS)
    run_recipe(file, out=folder / "run")
    return folder


def reference(folder: Path) -> str:
    return f"run:{folder / 'run'}"


def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the weights of every merged folder before it is proved, as a bad conversion does."""
    import torch

    build: Callable[..., str] = merged.build

    def damaged(model: Any, folder: Path, options: Any) -> str:
        kind = build(model, folder, options)
        torch.manual_seed(0)
        change_weights(folder, lambda name, weight: weight + 0.1 * torch.randn_like(weight))
        return kind

    monkeypatch.setattr(merged, "build", damaged)


def test_the_stage_writes_and_proves_every_format(trained: Path) -> None:
    run = RunDir(trained / "run")
    manifest = run.manifest("export") or {}
    assert [(entry["to"], entry["type"], entry["proof"]) for entry in manifest["exports"]] == [
        ("merged", "f32", "proved"), ("adapter", "f32", "proved"),
    ]  # fmt: skip
    for folder in (run.exported("merged"), trained / "adapter"):
        check_folder(folder)
        proof = read_proof(folder / "proof.json")
        assert proof.passed
        assert proof.rows == 8
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
        text = "\n".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".md"))
        assert str(Path.home()) not in text
    page = run.report.read_text(encoding="utf-8")
    assert "../adapter" in page
    assert "export/merged" in page
    question = "Say one and cat, number 3."
    asked = [
        open_chatter(name).ask(question, max_new_tokens=6) for name in (reference(trained), str(trained / "adapter"))
    ]
    assert asked[0] == asked[1] == open_chatter(str(run.exported("merged"))).ask(question, max_new_tokens=6)


def test_the_stage_is_skipped_and_makes_only_what_is_missing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    before = tree(folder / "run/export")
    run = run_recipe(folder / "run")
    assert tree(run.stage("export")) == before
    assert set(stage_states(load_recipe(run.resolved_recipe), run).values()) == {"done"}
    (run.stage("export") / "manifest.json").unlink()
    shutil.rmtree(folder / "adapter")
    kept = (run.exported("merged") / "model.safetensors").stat().st_mtime_ns
    run_recipe(folder / "run")
    assert (run.exported("merged") / "model.safetensors").stat().st_mtime_ns == kept
    check_folder(folder / "adapter")


def test_an_export_that_fails_its_proof_ends_the_run_with_its_exit_code_and_loses_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tunesmith: Command
) -> None:
    lossy(monkeypatch)
    shutil.copytree(trained, tmp_path / "project")
    shutil.rmtree(tmp_path / "project/run/export")
    shutil.rmtree(tmp_path / "project/adapter")
    done = tunesmith("run", "project/run")
    assert done.code == NotProved.exit_code
    check_folder(tmp_path / "project/adapter")
    assert not (tmp_path / "project/run/export/merged").exists()
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_failed_proof_publishes_nothing_unless_it_is_forced(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tunesmith: Command
) -> None:
    lossy(monkeypatch)
    refused = tunesmith("export", reference(trained), "--to", "merged", "--out", "out", "--json")
    assert refused.code == NotProved.exit_code
    result = json.loads(refused.out)
    assert result["error"]["code"] == "not-proved"
    assert "failed" in {check["status"] for check in result["proof"]["checks"]}
    assert list(tmp_path.iterdir()) == []
    forced = tunesmith(
        "export", reference(trained), "--to", "merged", "--out", "out", "--force", "--reason", "for a test"
    )
    assert forced.code == 0
    assert "for a test" in forced.out
    proof = read_proof(tmp_path / "out/proof.json")
    assert (proof.passed, proof.forced) == (False, "for a test")


def test_a_repeated_export_is_left_as_it_is_and_another_is_refused(trained: Path, tmp_path: Path) -> None:
    first = export_model(reference(trained), tmp_path / "out", to="merged", type="bf16")
    assert (first.type, first.existed) == ("bf16", False)
    before = tree(tmp_path / "out")
    assert export_model(reference(trained), tmp_path / "out", to="merged", type="bf16").existed
    assert tree(tmp_path / "out") == before
    (tmp_path / "out/README.md").write_text("read and corrected")
    assert export_model(reference(trained), tmp_path / "out", to="merged", type="bf16").existed
    assert (tmp_path / "out/README.md").read_text() == "read and corrected"
    with raises(RecipeError, "exists"):
        export_model(reference(trained), tmp_path / "out", to="merged", type="f16")
    (tmp_path / "out/config.json").write_text("{}")
    with raises(RecipeError, "exists"):
        export_model(reference(trained), tmp_path / "out", to="merged", type="bf16")


def test_a_full_model_is_exported_and_too_small_a_disk_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = str(resolve(str(trained / "run/export/merged")).path)
    exported = export_model(whole, tmp_path / "copy", to="merged")
    assert exported.proof is not None
    assert exported.proof.passed
    monkeypatch.setattr("tunesmith.export.export.free_gib", lambda path: 1e-6)
    with raises(DoesNotFit, "not-enough-disk"):
        export_model(whole, tmp_path / "other", to="merged")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_folder_that_appears_during_an_export_is_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, mine = merged.build, tmp_path / "out/mine"

    def build_slowly(*arguments: Any) -> str:
        mine.parent.mkdir()
        mine.touch()
        return build(*arguments)

    monkeypatch.setattr(merged, "build", build_slowly)
    with raises(RecipeError, "exists"):
        export_model(
            reference(trained), tmp_path / "out", to="merged", skip_proof=True, force=True, reason="for a test"
        )
    assert mine.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_is_stopped_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(merged, "build", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_model(reference(trained), tmp_path / "out", to="merged")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_and_an_adapter_as_gguf_are_proved_by_llama_cpp(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    whole = export_model(reference(trained), tmp_path / "whole", to="gguf")
    assert whole.type == "f16"
    assert {path.name for path in (tmp_path / "whole").glob("*.gguf")} == {"tiny-f16.gguf"}
    alone = export_model(reference(trained), tmp_path / "alone", to="gguf", adapter_only=True)
    assert alone.type == "f32"
    assert {path.name for path in (tmp_path / "alone").glob("*.gguf")} == {"tiny-f32-lora.gguf"}
    for exported in (whole, alone):
        assert exported.proof is not None
        assert exported.proof.passed
        assert exported.proof.engine.startswith("llama.cpp")
    assert sum(whole.files.values()) > 2 * sum(alone.files.values())


def test_the_finished_folder_is_uploaded_and_a_repeated_command_uploads_what_failed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    settings: dict[str, Any] = {"to": "hub", "repo": "org/tiny"}
    with raises(RecipeError, "missing-key", where="--repo"):
        export_model(reference(trained), tmp_path / "out", to="hub")
    with raises(RecipeError, "adapter-unsupported", "org/tiny"):  # its base is a folder, which no reader has
        export_model(reference(trained), tmp_path / "out", to="adapter", repo="org/tiny", dry_run=True)
    assert export_model(reference(trained), tmp_path / "out", dry_run=True, **settings).url is None
    before = tree(tmp_path / "out")
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        uploaded = export_model(reference(trained), tmp_path / "out", **settings)
        assert uploaded.existed
        assert uploaded.url
        assert set(hub.repositories["org/tiny"].files) - {".gitattributes"} == set(before)
    assert tree(tmp_path / "out") == before
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "org/tiny" in card
    assert str(tmp_path) not in card


def test_gguf_types_that_need_another_program_are_refused_without_it(trained: Path, tmp_path: Path) -> None:
    with raises(RecipeError, "contradiction", "--quantize-with"):
        export_model(reference(trained), tmp_path / "out", to="gguf", type="q4_k_m")
    with raises(RecipeError, "wrong-value", "--type"):
        export_model(reference(trained), tmp_path / "out", to="gguf", type="q4_0", adapter_only=True)
    assert list(tmp_path.iterdir()) == []


def test_an_export_published_by_force_is_not_taken_for_a_proved_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lossy(patch)
        forced = export_model(reference(trained), tmp_path / "out", to="merged", force=True, reason="for a test")
        assert forced.forced == "for a test"
        before = tree(tmp_path / "out")
        with pytest.raises(NotProved):
            export_model(reference(trained), tmp_path / "out", to="merged")
        assert tree(tmp_path / "out") == before
        settings: dict[str, Any] = {"to": "merged", "force": True, "reason": "untested", "skip_proof": True}
        export_model(reference(trained), tmp_path / "skipped", **settings)
        assert "untested" in (tmp_path / "skipped/README.md").read_text(encoding="utf-8")
        again = export_model(reference(trained), tmp_path / "out", to="merged", force=True, reason="again")
        assert (again.existed, again.forced) == (True, "for a test")
    proved = export_model(reference(trained), tmp_path / "out", to="merged")
    assert (proved.existed, proved.forced) == (False, None)


def test_an_export_states_the_verdict_of_a_later_evaluation(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    file = folder / "recipe.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["evaluate"]["max_new_tokens"] += 1
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = run_recipe(file, out=folder / "run")
    for exported in (run.exported("merged"), folder / "adapter"):
        check_folder(exported)
        limit = f"at most {settings['evaluate']['max_new_tokens']} new tokens"
        assert limit in (exported / "README.md").read_text(encoding="utf-8")
