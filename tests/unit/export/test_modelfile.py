"""Ollama's Modelfile, read back by the rules of its parser."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny
from tests.support.tuned import tuned_model

from tunesmith.core.errors import RecipeError
from tunesmith.export.modelfile import modelfile, quoted
from tunesmith.fetch.reference import resolve

CHAT = {"task": "chat", "prompt": "{q}", "response": "{a}", "system": 'Answer "briefly".\nDates are YYYY.'}


def parse(text: str) -> list[tuple[str, str]]:
    """Return (command, value) as Ollama's parser reads them (its parser/parser.go).

    A value ends at a line break at which its quotes are closed, or at which it has none; characters that cannot be
    printed are dropped.
    """
    commands = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command, _, value = line.partition(" ")
        if command == "PARAMETER":
            command, _, value = value.partition(" ")
        while (unquoted := _unquote(value)) is None:
            value += "\n" + next(lines)
        commands.append((command, "".join(c for c in unquoted if c.isprintable() or c in "\n\t")))
    return commands


def _unquote(value: str) -> str | None:
    value = value.strip()
    for marks in ('"""', '"'):
        if value.startswith(marks):
            is_closed = len(value) >= 2 * len(marks) and value.endswith(marks)
            return value[len(marks) : -len(marks)] if is_closed else None
    return value


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), "llama")


def written(model: Path, folder: Path, data: dict[str, Any], **names: Any) -> list[tuple[str, str]]:
    return parse(modelfile(resolve(tuned_model(model, folder / "tuned", data)), **{"file": "shop.gguf", **names}))


def test_modelfile_has_prompt_stop_and_decoding(model: Path, tmp_path: Path) -> None:
    commands = written(model, tmp_path, CHAT)
    values = dict(commands)
    assert values["FROM"] == "./shop.gguf"
    assert values["SYSTEM"] == CHAT["system"]
    assert values["TEMPLATE"].endswith("<|im_start|>assistant\n")
    expected = {("stop", "<|im_end|>"), ("temperature", "0"), ("repeat_penalty", "1"), ("num_ctx", "512")}
    assert expected <= set(commands)


def test_adapter_is_a_file_beside_its_base(model: Path, tmp_path: Path) -> None:
    values = dict(written(model, tmp_path, CHAT, file="base.gguf", adapter="shop lora.gguf"))
    assert (values["FROM"], values["ADAPTER"]) == ("./base.gguf", "./shop lora.gguf")


def test_completion_has_its_template(model: Path, tmp_path: Path) -> None:
    data = {"task": "completion", "prompt": "Q: {q}\nA:", "response": "{a}"}
    assert dict(written(model, tmp_path, data))["TEMPLATE"] == "Q: {{ .Prompt }}\nA:"
    several = {**data, "prompt": "{q} {context}"}
    assert dict(written(model, tmp_path, several))["TEMPLATE"] == "{{ .Prompt }}"


def test_system_turn_with_columns_is_left_to_the_client(model: Path, tmp_path: Path) -> None:
    data = {**CHAT, "system": "You know {city}."}
    assert "SYSTEM" not in dict(written(model, tmp_path, data))


def test_sampling_of_the_recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"evaluate": {"max_new_tokens": 80, "stop": ["\n\n"], "sampling": {"temperature": 0.7, "top_k": 20}}}
    monkeypatch.setattr("tunesmith.export.modelfile.recorded_recipe", lambda model: recipe)
    expected = {("temperature", "0.7"), ("top_k", "20"), ("top_p", "1"), ("num_predict", "80"), ("stop", "\n\n")}
    assert expected <= set(written(model, tmp_path, CHAT))


@pytest.mark.parametrize(
    "text", ["plain", 'a "b" c', '"', '""', ' "x" ', "two\nlines", 'say "x"\nthen', "\n\n", "", "# x"]
)
def test_quoted_text_is_read_back(text: str) -> None:
    assert parse(f"SYSTEM {quoted(text)}\nFROM x") == [("SYSTEM", text), ("FROM", "x")]


@pytest.mark.parametrize("text", ["no-break\u00a0space", "\u200b", 'a """\nb', "\x07", 'a """ \nb'])
def test_text_that_ollama_would_change_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        quoted(text)
    assert caught.value.code == "not-in-modelfile"


def test_model_that_tunesmith_did_not_tune_has_no_prompt_to_write(model: Path) -> None:
    commands = dict(parse(modelfile(resolve(str(model)), file="x.gguf")))
    assert "SYSTEM" not in commands
    assert json.loads((model / "config.json").read_text())["max_position_embeddings"] == 512
