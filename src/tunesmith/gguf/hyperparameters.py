"""The shape of a model as metadata of a GGUF file."""

from typing import Any

from tunesmith.gguf.architectures import Architecture
from tunesmith.gguf.config_facts import head_size, window_period, windowed_layers

_NORM_EPSILONS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # both programs use the same names


def hyperparameters(config: Any, architecture: Architecture, *, vocabulary: int) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of a configuration, without the architecture's name, and warnings for the user.

    Args:
        vocabulary: number of rows of the embedding.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    values: dict[str, Any] = {
        "context_length": int(config.max_position_embeddings),
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner or 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": head_size(config),
        "attention.value_length": head_size(config),
        "vocab_size": vocabulary,
    }
    values |= {key: float(getattr(config, name)) for name, key in _NORM_EPSILONS.items() if hasattr(config, name)}
    values |= {name: float(value) for name in _SOFT_CAPS if (value := getattr(config, name, None))}
    if hasattr(config, "use_parallel_residual"):
        values["use_parallel_residual"] = bool(config.use_parallel_residual)
    windowed = windowed_layers(config)
    if not any(windowed):
        return values, []
    if architecture.windows:
        values["attention.sliding_window"] = int(config.sliding_window)
        values["attention.sliding_window_pattern"] = window_period(windowed)
        return values, []
    window = int(config.sliding_window)
    if window >= values["context_length"]:
        return values, []
    warning = f"llama.cpp has no sliding window for {architecture.name}, so the context is limited to {window} tokens"
    return values | {"context_length": window}, [warning]
