"""The time of the frozen base's matrix products alone, for one step of LoRA: W x in forward, W' dY in backward.

Products with the same input are one (queries, keys and values; gate and up), all tokens of a step are in one matrix,
and the output layer is applied to trained positions only. No step that multiplies with these weights in this precision
can be faster on this machine. Every layer has its own weights, as in the model, so that they are read from memory.
"""

import statistics
import time
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run the products several times; return the median time of a step."""
    import torch
    from transformers import AutoConfig

    from tunesmith.fetch.reference import resolve
    from tunesmith.model.load import choose_compute

    compute = choose_compute()
    config = AutoConfig.from_pretrained(resolve(job["base"]).path)
    hidden, inner = config.hidden_size, config.intermediate_size
    width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads = config.num_attention_heads * width
    joined = heads + 2 * config.num_key_value_heads * width
    shapes = [(hidden, joined), (heads, hidden), (hidden, 2 * inner), (inner, hidden)]
    made = {"dtype": compute.dtype, "device": compute.device}
    layers = [torch.randn(b, a, **made) for _ in range(config.num_hidden_layers) for a, b in shapes]
    output = torch.randn(config.vocab_size, hidden, **made)
    inputs = {size: torch.randn(job["tokens"], size, **made) for pair in shapes for size in pair}
    ends = torch.randn(job["trained"], hidden, **made), torch.randn(job["trained"], config.vocab_size, **made)

    def step() -> float:
        began = time.perf_counter()
        for weight in layers:
            inputs[weight.shape[1]] @ weight.t()
        ends[0] @ output.t()
        ends[1] @ output
        for weight in reversed(layers):
            inputs[weight.shape[0]] @ weight
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.inference_mode():
        step()
        seconds = [step() for _ in range(job["rounds"])]
    return {"seconds": statistics.median(seconds), "precision": compute.precision, "each": seconds}


if __name__ == "__main__":
    protocol.run(work)
