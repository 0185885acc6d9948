"""`model.chat_markup` turns a model without a chat template into a chat model, for every command."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe, save_plain_model
from transformers import AutoTokenizer

from tunesmith import export_model, open_chatter, plan_run, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.fetch.reference import resolve
from tunesmith.plan.inspect import inspect_rows
from tunesmith.recipe.load import RecipeProblems

LIKELIHOODS = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 8, "max_new_tokens": 6}
TRAIN = {"learning_rate": 0.01, "epochs": 2, "examples_per_step": 8}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_model_learns_to_chat(tmp_path: Path, method: str) -> None:
    base = save_plain_model(tmp_path / "model", "llama")
    model = {"base": str(base), "precision": "fp32", "chat_markup": "chatml"}
    file = recipe(tmp_path, base, model=model, tuning={"method": method}, evaluate=LIKELIHOODS, train=TRAIN)
    with raises(RecipeError, "no-chat-template"):
        plan_run(file, ["model.chat_markup="])
    shown = inspect_rows(file, rows=1)[0]["tokens"]
    assert plan_run(file).rows.counts["train"] > 0
    run = run_recipe(file, out=tmp_path / "run")
    assert inspect_rows(run.path, rows=1)[0]["tokens"] == shown
    assert shown[0]["text"] == "<|im_start|>"
    verdict = read_json(run.verdict)
    assert verdict["verdict"] == "better"
    assert verdict["conditions"]["chat_markup"] == "chatml"
    assert verdict["primary"]["base"] > verdict["primary"]["tuned"]

    reference = f"run:{run.path}"
    chatter = open_chatter(reference)
    assert chatter.keeps_turns
    said = chatter.ask("Say one and cat.", max_new_tokens=6)
    if method == "lora":
        whole = open_chatter(str(export_model(reference, tmp_path / "merged", to="merged").folder))
        assert whole.keeps_turns
        assert whole.ask("Say one and cat.", max_new_tokens=6) == said

    # A tuned model keeps its markup when it is tuned further, and gets no other.
    second = tmp_path / "second"
    second.mkdir()
    onto: dict[str, Any] = {"base": reference, "precision": "fp32"}
    more = recipe(second, base, model=onto, evaluate=LIKELIHOODS, train=TRAIN)
    with raises(RecipeError, "has-chat-template"):
        plan_run(more, ["model.chat_markup=chatml"])
    again = run_recipe(more, out=second / "run")
    assert read_json(again.verdict)["primary"]["base"] == pytest.approx(verdict["primary"]["tuned"], rel=1e-3)
    assert open_chatter(f"run:{again.path}").keeps_turns
    assert resolve(f"run:{again.path}").chat_markup == ("chatml" if method == "lora" else None)


def test_a_model_trained_on_chat_texts_gets_prompts_as_turns(tmp_path: Path) -> None:
    base = save_plain_model(tmp_path / "model", "llama")
    text = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    data = {"source": {"file": "rows.jsonl"}, "task": "text", "text": text, "control_tokens": True}
    model = {"base": str(base), "precision": "fp32", "chat_markup": "chatml"}
    file = recipe(tmp_path, base, model=model, data=data, evaluate=LIKELIHOODS, train={**TRAIN, "max_steps": 2})
    run = run_recipe(file, out=tmp_path / "run", until="train")
    chatter = open_chatter(f"run:{run.path}#2")
    assert chatter.keeps_turns
    asked = chatter.task.encode_prompt(chatter.task.user_turn("Say one."))
    tokens = AutoTokenizer.from_pretrained(resolve(f"run:{run.path}#2").path)
    assert tokens.decode(asked) == "<|im_start|>user\nSay one.<|im_end|>\n<|im_start|>assistant\n"
    assert asked[0] == tokens.convert_tokens_to_ids("<|im_start|>")


def test_chat_markup_without_effect_is_refused(tmp_path: Path) -> None:
    file = recipe(tmp_path, tmp_path / "model")
    for data in ("data.task=completion", "data={task: text, text: '{question}', source: {file: rows.jsonl}}"):
        with raises(RecipeProblems, "no-effect", "model.chat_markup=chatml"):
            plan_run(file, ["model.chat_markup=chatml", data])
