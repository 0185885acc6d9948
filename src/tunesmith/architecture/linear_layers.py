"""The linear layers and experts of an unknown architecture, from the shapes of the tensors in its weight files.

transformers keeps the experts of a layer in memory as two parameters [experts, ., .]: the projections into the MLP,
fused, and the projection out of it. Files hold either these, or the matrices of every expert.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.architecture.shapes import Linear

# Tables that are looked up, not multiplied (embeddings of tokens and positions), and biases of experts.
_NOT_LINEAR = ("embed", "wpe", "shared.weight", "bias")
# A matrix of one expert: the path of its layer's experts, its number and its name.
_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(\w+)")
_OUTWARD = ("down_proj", "w2")
_ROUTERS = ("gate", "router")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def linear_layers(tensors: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> dict[str, Linear]:
    """Return {module name: sizes} of all linear layers, and of the experts of each layer.

    Without embeddings and output layer, which have the vocabulary as a side, and the routers of a mixture.
    """
    vocabulary = int(config.get("vocab_size", 0))
    layers: dict[str, Linear] = {}
    experts: dict[str, dict[str, Sequence[int]]] = {}  # {path of the experts: {name of a matrix: shape}}
    counts: dict[str, int] = {}
    active = first_number(config, *_EXPERTS_PER_TOKEN) or 1
    for name, shape in tensors.items():
        path = name.removesuffix(".weight")
        if vocabulary in shape or any(part in name for part in _NOT_LINEAR):
            continue
        if match := _EXPERT.fullmatch(path):
            experts.setdefault(match[1], {})[match[3]] = shape
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
        elif len(shape) == 2:
            layers[path] = Linear("", shape[0], shape[1], path)
        elif len(shape) == 3 and "conv" not in name:
            layers[path] = Linear("", shape[1], shape[2], path, experts=shape[0], active=active)
    # peft doubles the rank of Mixtral's fused projections, and adapts its routers.
    is_mixtral = config.get("model_type") == "mixtral"
    for path, parts in experts.items():
        for name, (out_features, in_features) in _fused(parts).items():
            ranks = 2 if is_mixtral and name not in _OUTWARD else 1
            layers[f"{path}.{name}"] = Linear(
                "", out_features, in_features, f"{path}.{name}", experts=counts[path], active=active, ranks=ranks
            )
    if is_mixtral or not any(linear.experts > 1 for linear in layers.values()):
        return layers
    return {path: linear for path, linear in layers.items() if path.rpartition(".")[2] not in _ROUTERS}


def _fused(parts: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Return {name: (out, in)} of one expert's matrices, with the projections into the MLP as one."""
    inward = [shape for name, shape in parts.items() if name not in _OUTWARD]
    fused = {"gate_up_proj": (sum(shape[0] for shape in inward), inward[0][1])} if inward else {}
    return fused | {name: (shape[0], shape[1]) for name, shape in parts.items() if name in _OUTWARD}


def first_number(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the value of the first of these keys that a configuration has."""
    return next((int(config[name]) for name in names if config.get(name)), None)
