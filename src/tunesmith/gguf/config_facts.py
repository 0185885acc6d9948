"""Properties of a model that follow from several settings of its transformers configuration."""

from typing import Any


def head_size(config: Any) -> int:
    """Return the number of dimensions of a query and of a key."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def windowed_layers(config: Any) -> list[bool]:
    """Return for each layer whether its attention has a sliding window."""
    if getattr(config, "sliding_window", None) is None:
        return [False] * config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in types]


def window_period(windowed: list[bool]) -> int | None:
    """Return n such that every n-th layer, and no other, has no window; None if there is no such n."""
    layers = range(len(windowed))
    periods = range(1, len(windowed) + 2)
    return next((n for n in periods if all(windowed[i] == ((i + 1) % n != 0) for i in layers)), None)
