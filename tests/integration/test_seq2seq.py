"""Models with encoder and decoder, from a checkpoint of transformers to a verdict and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_killed import start, steps_done, wait_until, weights
from tests.support.errors import raises
from tests.support.tiny import recipe, save_seq2seq, write_numbers

from tunesmith import plan_run, run_recipe
from tunesmith.cli import app
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir

DATA = {
    "source": {"file": "numbers.jsonl"}, "task": "seq2seq", "prompt": "{question}", "response": "{answer}",
    "split": {"valid": 0.05, "test": 0.1},
}  # fmt: skip
LORA = {"method": "lora", "rank": 4, "alpha": 8, "target": ["q", "v"]}
EVALUATE = {"metrics": ["exact_match", "perplexity"], "primary": "perplexity", "rows": 8, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5, initialized and saved by transformers."""
    return save_seq2seq(tmp_path_factory.mktemp("models") / "t5", fresh=True, vocab_size=96)


Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path, t5: Path) -> Written:
    """Write a recipe over numbers in digits and in words."""

    def write(model: Path | None = None, rows: int = 120, **changes: Any) -> Path:
        write_numbers(tmp_path / "numbers.jsonl", rows)
        return recipe(tmp_path, model or t5, **{"data": DATA, "evaluate": EVALUATE, **changes})

    return write


@pytest.mark.slow
def test_a_random_t5_learns_a_task(written: Written, tmp_path: Path) -> None:
    file = written(
        rows=6000,
        tuning={"method": "full"},
        train={"learning_rate": 0.01, "epochs": 3, "examples_per_step": 32, "warmup_fraction": 0.05},
        evaluate={"metrics": ["exact_match", "token_accuracy"], "primary": "exact_match", "rows": 150,
                  "max_new_tokens": 12, "beams": 2},
    )  # fmt: skip
    run = run_recipe(file, out=tmp_path / "run")
    verdict = read_json(run.verdict)
    assert verdict["verdict"] == "better"
    assert verdict["primary"]["base"] == 0
    assert verdict["primary"]["tuned"] > 0.9
    assert verdict["health"]["tuned"]["stopped"] > 140
    trained = {line["turns"][0]["text"] for line in read_jsonl(run.examples("train"))}
    assert trained.isdisjoint(line["turns"][0]["text"] for line in read_jsonl(run.examples("test")))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart"])
def test_every_architecture_runs_to_a_verdict_and_loads_in_plain_libraries(
    written: Written, tmp_path: Path, t5: Path, kind: str, method: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    from tunesmith.fetch.reference import resolve
    from tunesmith.model.adapters import open_model
    from tunesmith.model.load import choose_compute

    base = t5 if kind == "t5" else save_seq2seq(tmp_path / "m", kind)
    tuning = {**LORA, "target": "all-linear"} if kind == "bart" else LORA
    file = written(base, tuning=tuning if method == "lora" else {"method": "full"}, train={"learning_rate": 0.01})
    run = run_recipe(file, out=tmp_path / "run")
    verdict = read_json(run.verdict)
    assert verdict["primary"]["gain"] > 0
    assert run.report.stat().st_size > 10_000
    found = resolve(f"run:{run.path}")
    if method == "lora":
        plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(found.path))
    else:
        plain = AutoModelForSeq2SeqLM.from_pretrained(found.path)
    ids = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 5]])}
    with torch.inference_mode():
        assert torch.equal(plain.eval()(**ids).logits, open_model(found, choose_compute("fp32")).eval()(**ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [LORA, {"method": "full"}], ids=["lora", "full"])
def test_a_killed_run_ends_with_the_same_bytes(written: Written, tmp_path: Path, tuning: dict[str, Any]) -> None:
    # A checkpoint of plain transformers with dropout, whose masks must be the same after resuming.
    base = save_seq2seq(tmp_path / "m", fresh=True, dropout_rate=0.1)
    settings = {"learning_rate": 0.01, "epochs": 9, "max_steps": 40, "save_every_steps": 5, "valid_every_steps": 10}
    file = written(base, tuning=tuning, train=settings)
    assert start(file, tmp_path / "whole").wait(240) == 0
    run = RunDir(tmp_path / "killed")
    kills = 0
    for after in (7, 23):
        process = start(file, run.path)
        if wait_until(process, lambda after=after: steps_done(run) >= after):  # type: ignore[misc]
            process.kill()
            kills += 1
        process.wait(240)
    assert kills == 2
    assert start(file, run.path).wait(240) == 0
    assert weights(run) == weights(RunDir(tmp_path / "whole"))


def test_plan_refuses_a_task_that_the_model_cannot_do(written: Written, tiny: Path) -> None:
    with raises(RecipeError, "task-unsupported", "seq2seq"):
        plan_run(written(tiny))
    with raises(RecipeError, "task-unsupported", "completion"):
        plan_run(written(data={**DATA, "task": "completion"}))


def test_long_sources_and_targets_are_dropped_or_truncated(written: Written, tmp_path: Path) -> None:
    short = {**DATA, "max_target_tokens": 4, "max_dropped_fraction": 0.9}
    run = run_recipe(written(data=short), out=tmp_path / "dropped", until="prepare")
    counts = (run.manifest("prepare") or {})["dropped"]
    assert counts.keys() == {"target longer than 4 tokens"}
    run = run_recipe(written(data={**short, "too_long": "truncate"}), out=tmp_path / "cut", until="prepare")
    assert (run.manifest("prepare") or {})["cut"] == counts


def test_show_compare_generate_and_chat_work(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(written(evaluate={**EVALUATE, "beams": 2})), str(tmp_path / "run")

    def said(*words: str) -> str:
        app(words, exit_on_error=False, result_action="return_value")
        return capsys.readouterr().out

    assert "trained parameters" in said("plan", file)
    before = said("show", file, "--rows", "1")
    assert "</s>\u00a6<pad>\u27e6" in before
    assert before.endswith("</s>\u27e7\n")
    said("run", file, "--out", out)
    assert said("show", out, "--rows", "1") == before
    assert "base" in said("compare", out)
    asked = ("generate", f"run:{out}", "--prompt", "4 7 2", "--max-new-tokens", "4")
    assert json.loads(said(*asked, "--json"))[0]["prompt"] == "4 7 2"
    assert said(*asked, "--beams", "3")
