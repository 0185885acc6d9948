"""Metrics of answers during training use valid rows only, and equal those of the saved checkpoints."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe, save_seq2seq
from tests.support.tokens import write_examples
from tests.unit.train.conftest import CLOCKS

from tunesmith import load_recipe, run_recipe
from tunesmith.core.files import digest_file, read_json, write_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.fetch.reference import resolve
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import build_prompts, read_selected_rows
from tunesmith.model.adapters import open_model
from tunesmith.model.load import compute_config
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.train.train import train

TRAIN = {
    "learning_rate": 0.03, "max_steps": 6, "epochs": 9, "examples_per_step": 8, "valid_every_steps": 2,
    "keep_checkpoints": 9, "valid_metrics": ["rougeL", "chrf"], "valid_rows": 5, "select_best_by": "chrf",
}  # fmt: skip


def log(run: RunDir) -> list[dict[str, Any]]:
    """Return the log of training, without times and the use of the machine."""
    lines = [line for line in read_jsonl(run.metrics) if line["kind"] != "machine"]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def said(run: RunDir, step: int) -> list[dict[str, Any]]:
    return list(read_jsonl(run.valid_answers(step)))


def test_the_test_split_is_not_read_by_training(tmp_path: Path, tiny: Path) -> None:
    file = recipe(tmp_path, tiny, train=TRAIN)
    whole = run_recipe(file, out=tmp_path / "whole", until="prepare")
    poisoned = RunDir(shutil.copytree(whole.path, tmp_path / "poisoned"))
    # Rows of all splits are checked for their length, so only lengths are kept.
    places = TokenDataset(poisoned.tokens("test"))
    rows = [places.example(i, str(i)) for i in range(len(places))]
    write_examples(poisoned.tokens("test"), [replace(row, input_ids=(7,) * len(row.input_ids)) for row in rows])
    poisoned.examples("test").write_bytes(b"\0 no row\n")
    for run in (whole, poisoned):  # only this stage: room for the answers of test rows is checked before it
        train(load_recipe(run.resolved_recipe), run)
    assert log(whole) == log(poisoned)
    files = {run: (run.manifest("train") or {})["files"] for run in (whole, poisoned)}
    weights = [name for name in files[whole] if name.endswith(".safetensors") or name.startswith("answers/")]
    assert len(weights) >= 4 + 2
    assert [files[whole][name] for name in weights] == [files[poisoned][name] for name in weights]
    test = {line["id"] for line in read_jsonl(whole.examples("test"))}
    assert not test & {line["id"] for step in (0, 2, 4, 6) for line in said(whole, step)}
    assert digest_file(whole.tokens("test")) != digest_file(poisoned.tokens("test"))


@pytest.mark.parametrize("kind", ["chat", "text", "seq2seq"])
def test_answers_are_those_of_the_base_and_of_the_checkpoints(tmp_path: Path, tiny: Path, kind: str) -> None:
    base, sections = tiny, {}
    if kind != "chat":
        split = {"valid": 0.15, "test": 0.2}
        data = {"source": {"file": "rows.jsonl"}, "task": kind, "split": split}
        data |= {"text": "{question} {answer}"} if kind == "text" else {"prompt": "{question}", "response": "{answer}"}
        sections["data"] = data
    if kind == "seq2seq":
        base = save_seq2seq(tmp_path / "t5")
        sections["evaluate"] = {"metrics": ["chrf"], "primary": "chrf", "max_new_tokens": 8, "beams": 2}
        sections["tuning"] = {"method": "full"}
    file = recipe(tmp_path, base, train=TRAIN, **sections)
    run = run_recipe(file, out=tmp_path / "run", until="train")
    loaded = load_recipe(file)
    tokenizer = load_tokenizer(resolve(str(base)))
    task = task_for(loaded.data, tokenizer)
    examples, _ = read_selected_rows(run, "valid", 5, loaded.seed)
    questions = build_prompts(examples, loaded, task, tokenizer)
    assert (questions.beams, questions.max_new_tokens) == (loaded.evaluate.beams, 8)
    best = read_json(run.stage("train") / "manifest.json")["best_step"]
    for step, reference in ((0, str(base)), (best, f"run:{run.path}"), (6, f"run:{run.path}#6")):
        model = open_model(resolve(reference), compute_config(loaded))
        wanted = {line["id"]: line for line in predict(model, questions, task, range(len(examples)))}
        for line in said(run, step):
            assert {key: line[key] for key in wanted[line["id"]]} == wanted[line["id"]]
        assert len(said(run, step)) == 5
    assert [one["prediction"] for one in said(run, 0)] != [one["prediction"] for one in said(run, 6)]


def test_the_report_of_a_run_selected_by_execution_names_the_metric(tmp_path: Path, tiny: Path) -> None:
    file = recipe(
        tmp_path, tiny,
        data={"source": {"generated": "shop-sql", "rows": 80, "seed": 0}, "task": "chat", "prompt": "{question}",
              "response": "{sql}", "split": {"column": "split"}, "near_duplicate_threshold": 0.99},
        train={**TRAIN, "max_steps": 2, "valid_metrics": ["execution"], "select_best_by": "execution"},
        evaluate={"metrics": ["chrf"], "primary": "chrf", "rows": 4, "max_new_tokens": 8,
                  "database": "generated:shop-sql"},
    )  # fmt: skip
    run = run_recipe(file, out=tmp_path / "run")
    manifest = run.manifest("train") or {}
    assert (manifest["chosen_by"], manifest["best_step"], manifest["best_value"]) == ("execution", 2, 0.0)
    assert "shop.sqlite" in manifest["files"]
    assert manifest["inputs"]["database"] == "generated:shop-sql"
    assert not (run.stage("evaluate") / "shop.sqlite").exists()
    assert "execution accuracy (0.0 %" in run.report.read_text(encoding="utf-8")
    before = run.metrics.stat().st_mtime_ns
    write_json(run.stage("evaluate") / "manifest.json", {"inputs": {}, "files": {}})
    run_recipe(file, out=run.path)  # training is done and not repeated
    assert run.metrics.stat().st_mtime_ns == before
