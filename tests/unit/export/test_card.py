"""The model card of a run whose recipe, files and verdict are full of what must not be in it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from tests.support import verdicts

from tunesmith.core.files import digest_file, write_json
from tunesmith.export.card import write_card
from tunesmith.fetch.model_folder import CARD, ModelFolder
from tunesmith.fetch.pin import Pin
from tunesmith.proof.record import Check, Measure, Proof

PRIVATE = ("canary-user", "canary-host", "CANARY-ROW", "canary-token")
HOSTILE = 'Be brief.\n```\n</code><script>alert("x")</script>\n| a | [b](javascript:c)\n# Not a heading'
DATA = {"task": "chat", "system": HOSTILE, "prompt": "Say {mr}.", "response": "{ref}"}
SOURCE = {"file": "https://canary-user:canary-token@canary-host/srv/rows.csv?key=canary-token"}
RECIPE = {
    "name": "shop", "model": {"base": "/srv/canary-user/models/base"}, "data": {"source": SOURCE, **DATA},
    "tuning": {"method": "lora", "rank": 8, "alpha": 16, "target": "all-linear"}, "train": {"learning_rate": 1e-3},
    "evaluate": {"metrics": ["own.py:<b>score", "loss"], "primary": "own.py:<b>score", "max_new_tokens": 33},
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """Return the adapter of a finished run."""
    run, adapter, base = (tmp_path / name for name in ("srv/canary-user/run", "adapter", "srv/canary-user/<i>base"))
    for folder in (run, adapter, base):
        folder.mkdir(parents=True)
    recipe = json.loads(json.dumps(RECIPE).replace("own.py:<b>score", "own:score"))
    (run / "recipe.resolved.yaml").write_text(json.dumps(recipe))
    write_json(run / "environment.json", {"tunesmith": "0.1.0", "torch": "2.13.0", "cpu": "canary-host"})
    prepared = {"counts": {"train": 1600, "valid": 100, "test": 300, "dropped": 2}, "files": {"a": {"sha256": "1"}}}
    write_json(run / "prepare" / "manifest.json", prepared)
    write_json(run / "train" / "manifest.json", {"best_step": 80})
    primary = verdicts.comparison("own:<b>score", groups=150)
    found = verdicts.verdict(
        primary, guards=[("own:<b>score", 0.1)], reasons=["/srv/canary-user/x <b>bold</b>"],
        health={"tuned": {"rows": 200, "cut_off": 3, "empty": 0, "failed": 0}},
        conditions={"precision": "bf16", "quantization": None},
    )  # fmt: skip
    write_json(run / "evaluate" / "verdict.json", found.to_json())
    write_json(adapter / CARD, {"data": {**DATA}, "name": "shop", "step": 80, "base_digest": "b" * 64})
    write_json(adapter / "adapter_config.json", {"r": 8, "rank_pattern": {"q_proj": 24}})
    write_json(base / "config.json", {"max_position_embeddings": 2048})
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: <b>custom\n---\n")
    root = ModelFolder("base", base, pin=Pin("folder", str(base)))
    return ModelFolder("run", adapter, root, pin=Pin("run", str(run), "80"))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def proof() -> Proof:
    measures = (Measure.all_of("probes", 16, 16), Measure("mean KL", 0.5, at_most=0.02))
    checks = (
        Check("ids", measures[:1]),
        Check("logits", measures[1:]),
        Check("verdict", impossible="/srv/canary-user/x"),
    )
    return Proof(
        "shop", "d" * 64, "<b>llama.cpp", "q8_0", {}, 100, checks, forced="for /srv/canary-user/trial",
    )  # fmt: skip


Card = Callable[..., str]


@pytest.fixture
def card(model: ModelFolder, exported: Path) -> Card:
    return lambda **options: write_card(exported, model, **{"to": "merged", **options}).read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[Any]:
    body = text.split("\n---\n", 1)[1]
    return [
        token for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(body) if token.type == kind
    ]


def metadata(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.mark.parametrize("to", ["merged", "adapter", "gguf"])
def test_card_names_no_folder_user_host_or_row(to: str, card: Card, proof: Proof, tmp_path: Path) -> None:
    text = card(to=to, proof=proof)
    assert not [word for word in (*PRIVATE, "/srv", str(tmp_path)) if word in text]
    assert "rows.csv" in text


def test_text_of_others_is_never_markup(card: Card, proof: Proof) -> None:
    text = card(proof=proof)
    assert not blocks(text, "html_block")
    inline = [child for token in blocks(text, "inline") for child in token.children or ()]
    assert not [child for child in inline if child.type in ("html_inline", "link_open", "image")]
    titles = [line for line in text.splitlines() if line.startswith("#") and "Not a heading" in line]
    assert not titles


def test_prompt_is_the_recipe_s(card: Card) -> None:
    code = next(token.content for token in blocks(card(), "fence") if token.info == "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["messages"]("x") == [
        {"role": "system", "content": HOSTILE},
        {"role": "user", "content": "Say x."},
    ]


def test_verdict_has_numbers_guards_and_limits(card: Card) -> None:
    text = card()
    for value in ("40.0 %", "45.0 %", "+5.0", "+2.0 to +8.0", "200", "150", "in bf16", "Guard passed", "3 of 200"):
        assert value in text, value


def test_metadata_carries_the_interval_and_the_licence(card: Card) -> None:
    found = metadata(card())
    result = found["model-index"][0]["results"][0]
    [metric] = result["metrics"]
    assert metric["value"] == 0.45
    expected = {"base": 0.4, "gain": 0.05, "gain_low": 0.02, "gain_high": 0.08, "rows": 200, "groups": 150}
    assert expected.items() <= metric["args"].items()
    assert (found["license"], found["license_name"]) == ("other", "<b>custom")
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model" not in found  # it is a folder of this machine
    assert {"tunesmith", "lora", "conversational"} <= set(found["tags"])


def test_base_on_the_hub(card: Card, model: ModelFolder, exported: Path) -> None:
    assert model.base is not None
    on_hub = replace(model.base, pin=Pin("hub", "org/base", "abc123"))
    text = write_card(exported, replace(model, base=on_hub), to="adapter").read_text(encoding="utf-8")
    found = metadata(text)
    assert (found["base_model"], found["base_model_relation"]) == ("org/base", "adapter")
    assert "vllm serve org/base --enable-lora --max-lora-rank 32" in text
    assert "license" not in found  # its card cannot be fetched here
    assert "unknown" in text


def test_programs_that_open_no_repository_get_a_folder(card: Card, exported: Path) -> None:
    (exported / "chat_template.jinja").touch()
    text = card(to="adapter", repository="org/shop")
    assert "hf download org/shop --local-dir shop\nvllm serve " in text
    assert "--lora-modules" in text
    assert "=shop --chat-template shop/chat_template.jinja" in text
    assert "hf download" not in card(to="adapter", path="shop")


def test_other_checkpoint_has_no_verdict(card: Card, model: ModelFolder, exported: Path) -> None:
    assert model.pin is not None
    other = replace(model, pin=replace(model.pin, version="40"))
    text = write_card(exported, other, to="merged").read_text(encoding="utf-8")
    assert "no verdict" in text
    assert "model-index" not in metadata(text)


def test_model_that_tunesmith_did_not_tune(model: ModelFolder, exported: Path) -> None:
    assert model.base is not None
    text = write_card(exported, model.base, to="merged").read_text(encoding="utf-8")
    assert "no verdict" in text
    assert "not recorded" in text


def test_proof_is_a_table_with_its_failures(card: Card, proof: Proof) -> None:
    text = card(proof=proof)
    rows = re.findall(r"^\| (ids|logits|verdict) \| ([a-z ]+) \|", text, re.MULTILINE)
    assert rows == [("ids", "passed"), ("logits", "failed"), ("verdict", "not possible")]
    assert "**No**" in text
    assert "for trial" in text
    assert "was not proved" in card()


def test_files_have_their_digests(card: Card, exported: Path) -> None:
    text = card()
    assert digest_file(exported / "model.safetensors") in text
    assert "README.md" not in text
    assert card() == text  # the card itself is not in the list


@pytest.mark.parametrize(
    ("to", "files", "programs"),
    [
        ("merged", (), ("transformers", "vLLM", "tunesmith")),
        ("adapter", (), ("transformers and peft", "vLLM", "tunesmith")),
        ("gguf", ("shop.gguf", "Modelfile"), ("llama.cpp", "Ollama")),
        ("gguf", ("shop.gguf",), ("llama.cpp",)),
    ],
)
def test_programs_that_run_it(
    to: str, files: tuple[str, ...], programs: tuple[str, ...], card: Card, exported: Path
) -> None:
    for name in files:
        (exported / name).write_text("x")
    found = re.findall(r"^\*\*(.*)\*\*$", card(to=to, path="org/shop"), re.MULTILINE)
    assert tuple(found[:-1]) == programs
