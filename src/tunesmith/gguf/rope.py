"""Rotary position embeddings: the keys and tensors from which llama.cpp computes the same frequencies."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tunesmith.gguf.config_facts import head_size
from tunesmith.gguf.unsupported import unsupported

PLAIN_SCALINGS = frozenset({"default", "linear"})
"""The types of scaling that llama.cpp computes for every architecture with RoPE."""

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


class Rope(NamedTuple):
    """The metadata of an architecture's RoPE (without the architecture's name), and tensors of frequency factors."""

    metadata: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def describe_rope(config: Any, scalings: frozenset[str], *, where: Path) -> Rope:
    """Return the metadata and tensors of a configuration's RoPE.

    Raises:
        RecipeError: the type of scaling is not one of `scalings`, or one of its settings has no key.
    """
    if not scalings:
        return Rope({}, {})
    parameters = config.rope_parameters
    layer_type = _GLOBAL if _GLOBAL in parameters else None
    local = parameters.get(_LOCAL) if layer_type else None
    parameters = parameters[layer_type] if layer_type else parameters
    kind = parameters.get("rope_type", "default")
    problem = None
    if kind not in scalings or (kind != "default" and kind not in _SCALINGS):
        problem = f"llama.cpp does not compute RoPE scaling of type `{kind}` for this architecture"
    elif kind == "yarn" and not parameters.get("truncate", True):
        problem = "llama.cpp rounds the limits of YaRN's ramp (rope_parameters.truncate: false)"
    elif local is not None and local.get("rope_type", "default") != "default":
        problem = "llama.cpp does not scale the RoPE of layers with a window"
    if problem:
        raise unsupported(problem, where)
    size = int(head_size(config) * parameters.get("partial_rotary_factor", 1.0))
    metadata = {"rope.freq_base": float(parameters["rope_theta"]), "rope.dimension_count": size}
    if local is not None:
        metadata["rope.freq_base_swa"] = float(local["rope_theta"])
    if kind == "default":
        return Rope(metadata, {})
    scaling = _SCALINGS[kind](config, parameters, layer_type)
    return Rope(metadata | scaling.metadata, scaling.tensors)


def _linear(config: Any, parameters: dict[str, Any], layer_type: str | None) -> Rope:
    return Rope({"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}, {})


def _yarn(config: Any, parameters: dict[str, Any], layer_type: str | None) -> Rope:
    """YaRN. llama.cpp multiplies its default attention factor, 0.1 ln(factor) + 1, by the key's."""
    _, attention_factor = _from_transformers("yarn", config, layer_type)
    factor = float(parameters["factor"])
    default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        "rope.scaling.attn_factor": attention_factor / default,
        "rope.scaling.yarn_beta_fast": float(parameters.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(parameters.get("beta_slow") or 1),
    }
    return Rope(metadata, {})


def _llama3(config: Any, parameters: dict[str, Any], layer_type: str | None) -> Rope:
    """Llama 3's scaling: llama.cpp divides each frequency by a factor in a tensor."""
    frequencies, _ = _from_transformers("llama3", config, layer_type)
    size = 2 * len(frequencies)
    unscaled = parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return Rope({}, {"rope_freqs.weight": (unscaled / frequencies).float()})


def _longrope(config: Any, parameters: dict[str, Any], layer_type: str | None) -> Rope:
    """LongRoPE: llama.cpp uses the long factors if the whole context is longer than the original one."""
    _, attention_factor = _from_transformers("longrope", config, layer_type)
    metadata = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        "rope.scaling.attn_factor": attention_factor,
    }
    tensors = {
        f"rope_factors_{length}.weight": torch.tensor(parameters[f"{length}_factor"], dtype=torch.float32)
        for length in ("long", "short")
    }
    return Rope(metadata, tensors)


_SCALINGS = {"linear": _linear, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}


def _from_transformers(kind: str, config: Any, layer_type: str | None) -> tuple[torch.Tensor, float]:
    """Return the frequencies [rotary dimensions / 2] and the attention factor that transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), layer_type=layer_type)
    return frequencies, float(attention_factor)
