"""Whole runs on tiny models: every task and tuning, every architecture, skipped stages, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import CHATML, recipe, save_model

from tunesmith import Registry, load_recipe, run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.errors import RecipeError, VerdictRefused
from tunesmith.core.files import MANIFEST, check_folder, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir

TASKS: dict[str, dict[str, Any]] = {
    "chat": {"task": "chat", "prompt": "{question}", "response": "{answer}"},
    "completion": {"task": "completion", "prompt": "{question} ->", "response": " {answer}"},
    "text": {"task": "text", "text": "{question} {answer}"},
}
TUNINGS: dict[str, dict[str, Any]] = {"lora": {"method": "lora", "rank": 4, "alpha": 8}, "full": {"method": "full"}}
LIKELIHOODS = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 8, "max_new_tokens": 6}


def data(task: str) -> dict[str, Any]:
    """Return the data section of a task over the rows that `recipe` writes."""
    return {"source": {"file": "rows.jsonl"}, "split": {"valid": 0.15, "test": 0.2}, **TASKS[task]}


@pytest.mark.parametrize("method", TUNINGS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_tuning_runs_to_a_verdict(tmp_path: Path, tiny: Path, task: str, method: str) -> None:
    file = recipe(tmp_path, tiny, data=data(task), tuning=TUNINGS[method], evaluate=LIKELIHOODS)
    run = run_recipe(file, out=tmp_path / "run")

    verdict = read_json(run.verdict)
    assert verdict["primary"]["tuned"] < verdict["primary"]["base"] * 0.8  # perplexity of held-out rows
    assert verdict["verdict"] == "better"
    assert run.report.stat().st_size > 10_000
    for stage in ("prepare", "train", "evaluate"):
        check_folder(run.stage(stage))


@pytest.mark.parametrize("method", TUNINGS)
def test_saved_models_load_in_plain_libraries_with_equal_logits(tmp_path: Path, tiny: Path, method: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.fetch.reference import resolve
    from tunesmith.model.adapters import open_model
    from tunesmith.model.load import choose_compute

    run = run_recipe(recipe(tmp_path, tiny, tuning=TUNINGS[method]), out=tmp_path / "run", until="train")
    found = resolve(f"run:{run.path}")
    if method == "lora":
        assert not (found.path / "config.json").exists()  # it would make the adapter unreadable as an adapter
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(found.path))
    else:
        plain = AutoModelForCausalLM.from_pretrained(found.path)
    ids = torch.tensor([AutoTokenizer.from_pretrained(found.path)("Say one and cat").input_ids])
    with torch.inference_mode():
        assert torch.equal(plain.eval()(ids).logits, open_model(found, choose_compute("fp32")).eval()(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["gpt2", "gpt_neo", "llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite"],
)
def test_every_architecture_runs_to_a_verdict(tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path / "model", kind, template=CHATML)
    train = {"learning_rate": 0.01, "epochs": 3, "examples_per_step": 8}
    run = run_recipe(recipe(tmp_path, model, evaluate=LIKELIHOODS, train=train), out=tmp_path / "run")
    losses = [line["loss"] for line in read_jsonl(run.metrics) if line["kind"] == "valid"]
    assert losses[-1] < losses[0]
    assert read_json(run.verdict)["primary"]["gain"] > 0


def test_a_second_run_does_nothing(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run = run_recipe(file, out=tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path != run.lock}
    run_recipe(file, out=tmp_path / "run")
    after = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path != run.lock}
    assert after == before


def test_other_evaluation_settings_repeat_only_the_evaluation(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run = run_recipe(file, out=tmp_path / "run")
    trained = (run.stage("train") / MANIFEST).stat().st_mtime_ns
    run_recipe(file, ["evaluate.rows=4"], out=tmp_path / "run")
    assert read_json(run.verdict)["primary"]["rows"] == 4
    assert (run.stage("train") / MANIFEST).stat().st_mtime_ns == trained


def test_another_recipe_is_refused_and_changes_nothing(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run = run_recipe(file, out=tmp_path / "run", until="train")
    before = check_folder(run.stage("train"))
    with raises(RecipeError, "settings-changed", "train.learning_rate"):
        run_recipe(file, ["train.learning_rate=1"], out=tmp_path / "run")
    assert check_folder(run.stage("train")) == before


@pytest.mark.parametrize("change", ["evaluate.max_new_tokens=5", "evaluate.beams=2"])
def test_decoding_settings_are_part_of_training_with_valid_metrics(tmp_path: Path, tiny: Path, change: str) -> None:
    train = {"learning_rate": 0.01, "max_steps": 2}
    for name, more in (("silent", {}), ("asking", {"valid_metrics": ["rougeL"]})):
        file = recipe(tmp_path, tiny, train={**train, **more})
        run = run_recipe(file, out=tmp_path / name, until="prepare")
        if not more:
            run_recipe(file, [change], out=run.path, until="prepare")
            continue
        before = run.resolved_recipe.read_bytes()
        with raises(RecipeError, "settings-changed", change.partition("=")[0]):
            run_recipe(file, [change], out=run.path, until="prepare")
        assert run.resolved_recipe.read_bytes() == before
        run_recipe(file, ["evaluate.rows=4"], out=run.path, until="prepare")


def test_changed_data_is_refused_after_prepare(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run_recipe(file, out=tmp_path / "run", until="train")
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"question": "More?", "answer": "yes", "tree": 99}) + "\n")
    with raises(RecipeError, "inputs-changed", "source"):
        run_recipe(file, out=tmp_path / "run")


def test_a_moved_run_folder_resumes(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run_recipe(file, out=tmp_path / "run", until="prepare")
    (tmp_path / "run").rename(tmp_path / "moved")
    run = run_recipe(tmp_path / "moved")
    assert run.manifest("evaluate") is not None
    for path in run.path.rglob("*.json*"):
        if path.name not in ("adapter_config.json", "tunesmith.json", MANIFEST):  # these name the base as it was typed
            assert str(tmp_path / "run") not in path.read_text(), path


def test_promotion_follows_the_verdict(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, evaluate=LIKELIHOODS, promote={"model": "tiny", "min_gain": 0.0})
    held = Registry.default().add("tiny", tiny, facts={})
    Registry.default().move("tiny", "staging", held.number, verdict=None, reason=None, forced=False)
    run = run_recipe(file, out=tmp_path / "run")
    version = Registry.default().resolve("tiny@staging")
    assert version.number == 2
    assert version.facts["verdict"]["verdict"] == "better"
    promoted = read_json(run.stage("promote") / MANIFEST)
    assert (promoted["version"], promoted["replaced"]) == (2, 1)  # a version that it was not compared with
    run_recipe(file, out=tmp_path / "run")
    assert len(Registry.default().versions("tiny")) == 2


def test_a_verdict_that_does_not_allow_promotion_stops_with_a_report(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, tiny, evaluate=LIKELIHOODS, promote={"model": "tiny", "min_gain": 1e6})
    with pytest.raises(VerdictRefused):
        run_recipe(file, out=tmp_path / "run")
    assert RunDir(tmp_path / "run").report.exists()
    assert Registry.default().models() == []
    assert run_command(app, ["run", str(file), "--out", str(tmp_path / "run")]) == 4
    out, err = capsys.readouterr()
    assert out.startswith("The tuned model is not better: ")
    for line in (f"run:    {tmp_path / 'run'}", "report: ", f"tunesmith promote {tmp_path / 'run'} --force"):
        assert line in out
    assert "error" not in err
    assert run_command(app, ["run", str(file), "--out", str(tmp_path / "run"), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"]["verdict"], told["promoted"]) == ("not_better", None)


def test_tuning_on_top_of_a_tuned_model(tmp_path: Path, tiny: Path) -> None:
    first = run_recipe(recipe(tmp_path, tiny), out=tmp_path / "first", until="train")
    second = tmp_path / "second"
    second.mkdir()
    file = recipe(second, tiny, model={"base": f"run:{first.path}", "precision": "fp32"}, evaluate=LIKELIHOODS)
    verdict = read_json(run_recipe(file, out=second / "run").verdict)
    assert verdict["primary"]["gain"] > 0


def test_the_resolved_recipe_is_a_recipe(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny)
    run = run_recipe(file, ["train.epochs=1"], out=tmp_path / "run", until="prepare")
    assert load_recipe(run.resolved_recipe) == load_recipe(file, ["train.epochs=1"])
