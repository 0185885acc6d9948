"""The architectures that can be written, and how llama.cpp computes each of them.

Facts are those of llama.cpp: src/models/*.cpp (which keys and tensors an architecture reads, and how it computes) and
src/llama-model.cpp (the keys that all read). `tests/integration/test_gguf_parity.py` compares each with transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

from tunesmith.architecture.base_model import refuse_pickle, stored_quantization
from tunesmith.core.errors import RecipeError
from tunesmith.gguf.config_facts import head_size, window_period, windowed_layers
from tunesmith.gguf.rope import PLAIN_SCALINGS
from tunesmith.gguf.unsupported import unsupported

RowOrder = Callable[[str, Any], torch.Tensor | None]
"""From a tensor's name and a configuration to the order of its rows in the file; None to keep the order."""

_SILU = ("silu", "swish")
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def _keep(name: str, config: Any) -> None:
    return None


def _rotary_pairs(name: str, config: Any) -> torch.Tensor | None:
    """Order the rows of queries and keys so that the two dimensions that are rotated together are neighbours.

    transformers rotates dimension i with i + d / 2 of a head of d dimensions; llama.cpp's `llama` rotates 2i with
    2i + 1.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = name.split(".")[-2]
    if module not in heads:
        return None
    rows = torch.arange(heads[module] * head_size(config))
    return rows.view(heads[module], 2, -1).transpose(1, 2).flatten()


def _one_after_another(name: str, config: Any) -> torch.Tensor | None:
    """Order the rows of GPT-NeoX's fused projection: all queries, all keys, all values, instead of head by head."""
    if "query_key_value" not in name:
        return None
    heads = config.num_attention_heads
    return torch.arange(3 * config.hidden_size).view(heads, 3, -1).transpose(0, 1).flatten()


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a model type of transformers becomes an architecture of llama.cpp.

    Attributes:
        kind: the architecture of llama.cpp.
        activations: those of transformers' `hidden_act` that it computes.
        scalings: the types of RoPE scaling that it computes; empty for an architecture without RoPE.
        row_order: the order of a tensor's rows in the file.
        transposed: the modules whose weights transformers stores as [in, out].
        norm_offset: a number that is added to the weights of norms.
        windows: whether it has layers with a sliding window; otherwise the context is limited to the window.
        output: whether an output layer apart from the embedding is `needed`, `optional`, or `never` read.
        scales_by_head: whether it scales attention by the head's size only, and has no key for another scale.
        attention_bias: the values of transformers' `attention_bias` that it can read.
    """

    kind: MODEL_ARCH
    activations: tuple[str, ...] = _SILU
    scalings: frozenset[str] = PLAIN_SCALINGS
    row_order: RowOrder = _keep
    transposed: tuple[str, ...] = ()
    norm_offset: float = 0.0
    windows: bool = False
    output: str = "optional"
    scales_by_head: bool = False
    attention_bias: tuple[bool, ...] = (False,)

    @property
    def name(self) -> str:
        """The name in the file, with which its keys begin."""
        return MODEL_ARCH_NAMES[self.kind]


_LLAMA = Architecture(
    MODEL_ARCH.LLAMA,
    scalings=PLAIN_SCALINGS | {"yarn", "llama3"},
    row_order=_rotary_pairs,
    attention_bias=(False, True),
)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2, scalings=PLAIN_SCALINGS | {"yarn"}),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, scalings=PLAIN_SCALINGS | {"yarn"}),
    "gemma2": Architecture(
        MODEL_ARCH.GEMMA2, activations=_GELU, norm_offset=1.0, windows=True, output="never", scales_by_head=True
    ),
    "gemma3_text": Architecture(
        MODEL_ARCH.GEMMA3, activations=_GELU, norm_offset=1.0, windows=True, scales_by_head=True
    ),
    "phi3": Architecture(MODEL_ARCH.PHI3, scalings=frozenset({"default", "longrope"})),
    "gpt2": Architecture(
        MODEL_ARCH.GPT2, activations=_GELU, scalings=frozenset(), transposed=("c_attn", "c_proj", "c_fc")
    ),
    # llama.cpp computes the approximation by tanh also for `gelu`.
    "gpt_neox": Architecture(
        MODEL_ARCH.GPTNEOX,
        activations=(*_GELU, "gelu"),
        row_order=_one_after_another,
        output="needed",
        attention_bias=(True,),
    ),
}
"""{`model_type` of transformers: its architecture in llama.cpp}."""


def read_model_config(folder: Path) -> Any:
    """Return the configuration of a transformers folder that can be written.

    Raises:
        RecipeError: the folder has no model, or one that cannot be written; no weights were read.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        is_adapter = (folder / "adapter_config.json").exists()
        message = "is an adapter, not a model" if is_adapter else "has no config.json"
        hint = "merge it first (`--to merged`), or write it with `--adapter-only`" if is_adapter else None
        raise RecipeError(message, where=str(folder), hint=hint, code="no-model")
    refuse_pickle(folder)
    if method := stored_quantization(folder):
        message = f"the stored weights are quantized ({method})"
        hint = "export the model that it was quantized from"
        raise RecipeError(message, where=str(folder), hint=hint, code="already-quantized")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        message = f"transformers cannot read its configuration: {str(error).splitlines()[0]}"
        raise RecipeError(message, where=str(folder), code="not-loadable") from error


def find_architecture(config: Any, folder: Path) -> Architecture:
    """Return the architecture of a configuration.

    Raises:
        RecipeError: llama.cpp, or this package, has no such architecture, or it would compute something else.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    where = folder / "config.json"
    if architecture is None:
        message = f"models of type `{config.model_type}` cannot be written as GGUF; known: {', '.join(ARCHITECTURES)}"
        raise unsupported(message, where)
    if difference := _difference(config, architecture):
        raise unsupported(f"llama.cpp would compute this model differently: {difference}", where)
    return architecture


def _difference(config: Any, architecture: Architecture) -> str | None:
    """Return the first setting of a configuration that llama.cpp ignores or has fixed; None if there is none."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    activation = activation or config.activation_function
    if activation not in architecture.activations:
        return f"its activation is `{activation}`, and llama.cpp computes {architecture.activations[0]}"
    if architecture.scales_by_head and config.query_pre_attn_scalar != _fixed_scale(config):
        return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp uses {_fixed_scale(config)}"
    if architecture.windows and window_period(windowed_layers(config)) is None:
        return "its layers with and without a window alternate irregularly"
    if getattr(config, "attention_bias", architecture.attention_bias[0]) not in architecture.attention_bias:
        return f"attention_bias is {str(config.attention_bias).lower()}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention is bidirectional"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or not getattr(config, "scale_attn_weights", True):
        return "it scales attention by layer, or not at all"
    if architecture.output == "never" and not config.tie_word_embeddings:
        return "its output layer differs from its embedding (tie_word_embeddings: false)"
    return None


def _fixed_scale(config: Any) -> int:
    """Return the number by whose root llama.cpp divides attention in Gemma; the 27B models have another one."""
    if (config.model_type, config.num_hidden_layers) in (("gemma2", 46), ("gemma3_text", 62)):
        return int(config.hidden_size // config.num_attention_heads)
    return head_size(config)
