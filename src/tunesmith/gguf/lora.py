"""Write a LoRA adapter as a GGUF file, which llama.cpp adds to its base when it starts.

llama.cpp computes W x + (alpha / r) B A x with one alpha for a file and the rank of each module
(src/llama-adapter.h). It knows neither rsLoRA's alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732) nor an alpha
per module, so both become part of alpha, and of B if modules differ.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import get_tensor_name_map
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json
from tunesmith.core.suggest import did_you_mean
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.gguf.architectures import find_architecture, read_model_config
from tunesmith.gguf.gguf_file import general_metadata, refuse_existing, write_file
from tunesmith.gguf.tensor_types import GGUF_TYPES
from tunesmith.gguf.tensors import computed_tensor

LORA_TYPES = ("f32", "f16", "bf16")
"""The types of adapters. A file is small, so types with fewer bits would only lose precision."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Settings of peft that change the computation and that llama.cpp does not know, each with its meaning.
_UNKNOWN_TO_LLAMA_CPP = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with a bias",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained rows of tokens",
    "target_parameters": "adapters on parameters that are not linear layers",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
}
_MERGE = "write the merged model instead: leave out `--adapter-only`, or use `--to merged`"


class _Pair(NamedTuple):
    """The update of one module: A [r, in], B [out, r], and the factor of their product."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


def write_lora_gguf(adapter: ModelFolder, out: Path, *, type: str, metadata: Mapping[str, Any] = {}) -> None:
    """Write an adapter, without its base, to a GGUF file.

    Args:
        adapter: a LoRA adapter on a full model.
        out: the file to create.
        type: one of `LORA_TYPES`.
        metadata: further keys, such as `general.name`.

    Raises:
        RecipeError: the file exists, the type is unknown, or llama.cpp cannot read an adapter like this one.
    """
    if type not in LORA_TYPES:
        hint = did_you_mean(type, LORA_TYPES)
        raise RecipeError(f"there is no type `{type}` for adapters", hint=hint, code="unknown-gguf-type")
    refuse_existing(out)
    _refuse_unknown(adapter)
    config = read_model_config(adapter.root.path)
    architecture = find_architecture(config, adapter.root.path)
    pairs = _read_pairs(adapter)
    alpha = Counter(pair.scaling * len(pair.down) for pair in pairs.values()).most_common(1)[0][0]
    names = get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    tensors = []
    for module, pair in pairs.items():
        name = names.get_name(module)
        if name is None or (name == "output" and config.tie_word_embeddings):
            message = f"llama.cpp cannot adapt `{module}` of `{architecture.name}`"
            raise RecipeError(message, where=adapter.reference, hint=_MERGE, code="adapter-unsupported")
        up = pair.up * (pair.scaling * len(pair.down) / alpha)
        order = architecture.row_order(f"{module}.weight", config)
        for part, values in (("a", pair.down), ("b", up if order is None else up[order])):
            tensors.append(computed_tensor(f"{name}.weight.lora_{part}", module, values.contiguous()))
    file_type = GGUF_TYPES[type]
    written = {
        **general_metadata(adapter.path, file_type),
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        **metadata,
    }
    write_file(out, architecture.name, written, tensors, file_type)


def _refuse_unknown(adapter: ModelFolder) -> None:
    """Raise RecipeError unless an adapter is plain LoRA on a full model."""
    where = adapter.reference
    if adapter.base is None:
        hint = "leave out `--adapter-only`"
        raise RecipeError("is a full model, not an adapter", where=where, hint=hint, code="not-an-adapter")
    problem = None
    config = read_json(adapter.path / _CONFIG)
    if adapter.base.base is not None:
        problem = "is an adapter on another adapter, and llama.cpp adds both to the base at once"
    elif (kind := config.get("peft_type")) != "LORA":
        problem = f"is an adapter of type {kind}, and llama.cpp knows only LoRA"
    elif config.get("bias", "none") != "none":
        problem = "has trained biases, which llama.cpp does not read"
    elif found := next((name for name in _UNKNOWN_TO_LLAMA_CPP if config.get(name)), None):
        problem = f"has {_UNKNOWN_TO_LLAMA_CPP[found]}, which llama.cpp does not know"
    if problem:
        raise RecipeError(problem, where=where, hint=_MERGE, code="adapter-unsupported")


def _read_pairs(adapter: ModelFolder) -> dict[str, _Pair]:
    """Return {module: its update} with fp32 matrices."""
    config = read_json(adapter.path / _CONFIG)
    with safe_open(adapter.path / _WEIGHTS, "pt") as file:
        stored = {name: file.get_tensor(name).float() for name in sorted(file.keys())}
    modules = {name.removesuffix(_DOWN) for name in stored if name.endswith(_DOWN)}
    if other := sorted(stored.keys() - {module + part for module in modules for part in (_DOWN, _UP)}):
        message = f"has the weights `{other[0]}`, which llama.cpp does not read"
        raise RecipeError(message, where=adapter.reference, hint=_MERGE, code="adapter-unsupported")
    return {
        module.removeprefix(_PREFIX): _Pair(
            stored[module + _DOWN],
            stored[module + _UP],
            _scaling(config, module.removeprefix(_PREFIX), rank=len(stored[module + _DOWN])),
        )
        for module in sorted(modules)
    }


def _scaling(config: dict[str, Any], module: str, *, rank: int) -> float:
    """Return the factor of a module's update, by peft's rules for patterns of names."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
