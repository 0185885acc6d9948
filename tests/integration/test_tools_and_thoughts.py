"""A run on tool calls with thoughts: all prompts and training rows have the ids of the model's own chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe, save_model

from tunesmith import run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.inference.chatter import open_chatter

TEMPLATE = Path(__file__).parents[1] / "support" / "chat_templates" / "qwen3.jinja"
CITIES = ("Bern", "Rome", "Oslo", "Paris", "Lima", "Cairo", "Delhi", "Tokyo", "Quito", "Accra")
TOOL = {
    "name": "weather", "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}  # fmt: skip


def row(number: int) -> dict[str, Any]:
    """Return a conversation that ends with a call; in every third one, an earlier call was answered."""
    city = CITIES[number % len(CITIES)]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city, "day": number}}}
    asked = {"role": "user", "content": f"Rain in {city} on day {number}?"}
    called = {"role": "assistant", "content": "", "reasoning_content": f"Ask for {city}.", "tool_calls": [call]}
    before = [asked, called, {"role": "tool", "content": '{"rain": false}'}] if number % 3 == 0 else []
    return {"messages": [*before, *([] if before else [asked]), called], "tools": [TOOL]}


def test_tool_calls_with_thoughts_have_the_same_ids_from_prepare_to_generate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_model(tmp_path / "qwen3", "llama", template=TEMPLATE.read_text())
    shape = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 2048}))
    rows = [row(number) for number in range(40)]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    data = {
        "source": {"file": "calls.jsonl"}, "task": "chat", "messages": "messages", "tools": "tools",
        "reasoning": "keep", "train_on": "last", "max_tokens_per_example": 2048,
        "split": {"valid": 0.1, "test": 0.2},
    }  # fmt: skip
    metrics = ["tool_call", "tool_call_name", "tool_call_f1"]
    run = run_recipe(
        recipe(
            tmp_path, base, data=data, train={"learning_rate": 0.001, "max_steps": 2, "examples_per_step": 4},
            evaluate={"metrics": metrics, "primary": "tool_call_f1", "rows": 6, "max_new_tokens": 24},
        ),
        out=tmp_path / "run",
    )  # fmt: skip
    chatter = open_chatter(str(run))
    own = chatter.tokenizer.hf_tokenizer  # as saved with the tuned model

    def own_ids(messages: list[Any], **arguments: Any) -> list[int]:
        tools = [{"type": "function", "function": TOOL}]
        ids: list[int] = own.apply_chat_template(messages, tools=tools, return_dict=False, **arguments)
        return ids

    for split in ("train", "valid", "test"):
        tokens = TokenDataset(run.tokens(split))
        for place, example in enumerate(_examples(run, split)):
            messages = rows[example["row"] - 1]["messages"]
            encoded = tokens.example(place, example["id"])
            assert list(encoded.input_ids) == own_ids(messages)
            trained = [i for i, is_trained in zip(encoded.input_ids, encoded.trained, strict=True) if is_trained]
            prompt = own_ids(messages[:-1], add_generation_prompt=True)
            assert prompt + trained == own_ids(messages)[: len(prompt) + len(trained)]
            assert "<think>" in own.decode(trained)

    answered = list(read_jsonl(run.evaluation("tuned") / "generations.jsonl"))
    assert len(answered) == 6
    for line in answered:
        messages = rows[line["row"] - 1]["messages"]
        assert json.loads(line["reference"].split("<tool_call>")[1].split("</tool_call>")[0])["name"] == "weather"
        assert "<think>" not in line["reference"]
        prompt = chatter.encode_prompt(chatter.turns_of_row({"messages": messages, "tools": [TOOL]}))
        assert list(prompt.ids) == own_ids(messages[:-1], add_generation_prompt=True)
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(rows[line["row"] - 1]) + "\n" for line in answered))
    capsys.readouterr()
    command = ["generate", str(run), "--file", str(asked), "--max-new-tokens", "24", "--json"]
    assert run_command(app, command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in answered]
    assert [line["reference"] for line in lines] == [line["reference"] for line in answered]


def _examples(run: RunDir, split: str) -> list[dict[str, Any]]:
    return list(read_jsonl(run.examples(split)))
