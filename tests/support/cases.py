"""Helpers of the tests of users' cases: recipes as changes of a base recipe, rows, and tiny models by name."""

import io
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tests.support.tiny import CHATML, THINKING, config, make_tokenizer, save_plain_model

Rows = list[dict[str, Any]]
WORDS = ("one", "two", "red", "blue", "cat", "dog", "sun")
BASE: dict[str, Any] = {
    "name": "c",
    "model": {"base": "tiny", "precision": "fp32"},
    "data": {
        "source": {"file": "rows.jsonl"}, "task": "chat", "prompt": "{q}", "response": "{a}",
        "split": {"valid": 0.2, "test": 0.3},
    },
    "tuning": {"method": "lora", "rank": 4, "alpha": 8},
    "train": {"learning_rate": 0.01, "max_steps": 2, "examples_per_step": 2},
    "evaluate": {"metrics": ["exact_match"], "primary": "exact_match", "rows": 10, "max_new_tokens": 8},
}  # fmt: skip
PROMOTED = {"promote": {"model": "loop", "min_gain": -0.99, "against": ["base"]}}
QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}
MESSAGES = {"data.prompt": ..., "data.response": ..., "data.messages": "m"}


def table(count: int = 40, **columns: Any) -> Rows:
    """Return rows {q, a, ...}. A column is a value, a function of the row's number, or `...` to leave it out."""
    rows: Rows = []
    for i in range(count):
        first, second = WORDS[i % 7], WORDS[i // 7 % 7]
        row = {"q": f"Say {first} and {second}, {i}", "a": f"{second} {first}", **columns}
        row = {key: value(i) if callable(value) else value for key, value in row.items()}
        rows.append({key: value for key, value in row.items() if value is not ...})
    return rows


def chats(*contents: Any, **last: Any) -> Rows:
    """Return rows with a column `m` of turns, user first.

    `#` in a content is replaced by the row's number; `last` are more keys of the last turn.
    """

    def turns(i: int) -> list[dict[str, Any]]:
        texts = [text.replace("#", str(i)) if isinstance(text, str) else text for text in contents]
        messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        messages[-1].update(last)
        return messages

    return [{"m": turns(i)} for i in range(40)]


def lines(rows: Rows) -> bytes:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def answered(value: str) -> bytes:
    """Return JSONL with this JSON text as the answer of each row."""
    return "".join(f'{{"q": "Say {i}", "a": {value}}}\n' for i in range(40)).encode()


@dataclass(frozen=True)
class Case:
    """A recipe, as changes of BASE, with rows and the expected exit code and output."""

    name: str
    code: int
    expected: tuple[str, ...] = ()  # parts of the output of `plan`
    changes: dict[str, Any] = field(default_factory=dict)  # dotted key -> value; `...` removes the key
    rows: Rows | bytes = field(default_factory=table)
    file: str = "rows.jsonl"
    trained: str | None = None  # the trained tokens of the first row, as `show` prints them
    prompt: tuple[str, ...] = ()  # parts of the first row's text, as `show` prints it


@cache
def model(folder: Path, kind: str) -> Path:
    """Return the folder of a tiny model; make it at the first call."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    path = folder / kind
    if kind == "plain":
        return save_plain_model(path, "llama")
    tokenizer = make_tokenizer(STRICT if kind == "strict" else THINKING if kind == "thinking" else CHATML)
    shape = config(kind if kind in ("roberta", "bert") else "llama")
    if kind == "short":  # fewer embeddings than the tokenizer has tokens
        shape.vocab_size = len(tokenizer) - 2
    if kind == "narrow":
        shape.max_position_embeddings = 64
    torch.manual_seed(0)
    masked = kind in ("roberta", "bert")
    (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    if kind in QUANTIZED:
        settings = json.loads((path / "config.json").read_text())
        settings["quantization_config"] = QUANTIZED[kind]
        (path / "config.json").write_text(json.dumps(settings))
    return path


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: object
    out: str
    output: str  # stdout and stderr


Command = Callable[..., Result]


def write(case: Case, models: Callable[[str], Path], folder: Path = Path()) -> Path:
    """Write the recipe and the rows of a case; return the recipe's path."""
    sections = deepcopy(BASE)
    for key, value in case.changes.items():
        node = sections
        *above, last = key.split(".")
        for name in above:
            node = node.setdefault(name, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    base = sections["model"]["base"]
    if base in MODELS:
        sections["model"]["base"] = str(models(base))
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    YAML().dump(sections, text)
    (folder / "recipe.yaml").write_text(text.getvalue(), encoding="utf-8")
    (folder / case.file).write_bytes(case.rows if isinstance(case.rows, bytes) else lines(case.rows))
    return folder / "recipe.yaml"


MODELS = ("tiny", "plain", "strict", "thinking", "short", "narrow", "roberta", "bert", "gptq", "bnb")
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML.removeprefix("{% for m in messages %}")
)
