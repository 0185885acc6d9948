"""Compute a model's shapes for the memory estimate from config.json. Reads no weights and imports no torch.

Each architecture is described by the linear layers of one layer and by the tensors that it saves for backward.
`tests/unit/kernels/test_saved_tensors.py` compares these descriptions with the tensors that torch saves.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.architecture.base_model import language_config
from tunesmith.architecture.shapes import Attention, Layer, Linear, Shapes, Stack
from tunesmith.architecture.weight_headers import shapes_from_headers
from tunesmith.core.errors import RecipeError

Config = Mapping[str, Any]


def shapes_of(folder: Path) -> Shapes:
    """Return the shapes of the model in a folder. If it has no weights, they are derived from the configuration alone.

    Raises:
        RecipeError: the architecture is not described here, or a size is missing, and there are no weights.
        DamagedFile: config.json or the header of a weight file is damaged.
    """
    config, shapes = language_config(folder), None
    # A size is missing (a default), zero, or a list with a size per layer.
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        shapes = _KNOWN[str(config.get("model_type"))](config)
    try:
        shapes = shapes or shapes_from_headers(folder, config)
    except (KeyError, TypeError, ValueError) as error:
        message, where = f"the layer sizes cannot be read: {error}", str(folder / "config.json")
        raise RecipeError(message, where=where, code="unknown-shapes") from None
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return replace(shapes, stored_bytes=2 if stored.endswith("16") else 4)


def _decoder(
    config: Config, *, tied: bool, norms: int = 2, qk_norm: bool = False, qkv_bias: bool = False, head_dim: int = 0
) -> Shapes:
    """Llama and similar models: gated MLP, RMSNorm, rotary positions."""
    hidden, inner, heads = _sizes(config, "hidden_size", "intermediate_size", "num_attention_heads")
    count = int(config["num_hidden_layers"])
    width = int(config.get("head_dim") or head_dim or hidden // heads)
    queries, keys = heads * width, int(config.get("num_key_value_heads") or heads) * width
    biased, mlp_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    softcapped = config["model_type"] == "gemma2" and bool(config.get("attn_logit_softcapping"))
    attention = Attention(heads, queries, keys, fused=not softcapped, scores=(2, 1), qk_norm=qk_norm)
    names = "q_proj k_proj v_proj o_proj"
    linear = (
        *_attention_layers("self_attn", names, hidden, attention, bias=qkv_bias or biased, out_bias=biased),
        Linear("mlp.gate_proj", inner, hidden, "normed again", mlp_bias),
        Linear("mlp.up_proj", inner, hidden, "normed again", mlp_bias),
        Linear("mlp.down_proj", hidden, inner, "activated", mlp_bias),
    )
    # The fast path saves both inputs of a SiLU gate; plain torch also saves silu(gate).
    silu = config.get("hidden_act", config.get("hidden_activation")) in ("silu", "swish")
    layer = Layer(linear, (attention,), inner, activations=2 if silu else 3, norms=norms, rms_norm=True, dropouts=0)
    windowed, window = _windows(config, count)
    stack = Stack("model.layers", count, layer, windowed=windowed, window=window)
    return _model(config, stack, hidden, hidden, tied=tied, dropout=_drops(config, "attention_dropout"))


def _phi3(config: Config) -> Shapes:
    """Phi-3: like Llama, with fused projections."""
    like = _decoder(config, tied=False)
    [stack] = like.stacks
    layer = stack.layer
    [attention] = layer.attention
    hidden, inner = like.hidden, layer.mlp_width
    linear = (
        Linear("self_attn.qkv_proj", attention.queries + 2 * attention.keys, hidden, "normed"),
        Linear("self_attn.o_proj", hidden, attention.queries, "normed attended"),
        Linear("mlp.gate_up_proj", 2 * inner, hidden, "normed again"),
        Linear("mlp.down_proj", hidden, inner, "activated"),
    )
    # A view keeps the whole fused product alive, so queries and keys are saved twice, before and after rotation.
    attention = replace(attention, qk_norm=True)
    layer = replace(layer, linear=linear, attention=(attention,), activations=3)
    return replace(like, stacks=(replace(stack, layer=layer),))


def _phi(config: Config) -> Shapes:
    """Phi: parallel attention and MLP after one norm, with biases."""
    hidden, inner, heads = _sizes(config, "hidden_size", "intermediate_size", "num_attention_heads")
    count = int(config["num_hidden_layers"])
    attention = Attention(heads, hidden, int(config.get("num_key_value_heads") or heads) * (hidden // heads))
    linear = (
        *_attention_layers("self_attn", "q_proj k_proj v_proj dense", hidden, attention, bias=True),
        Linear("mlp.fc1", inner, hidden, "normed", bias=True),
        Linear("mlp.fc2", hidden, inner, "activated", bias=True),
    )
    layer = Layer(linear, (attention,), inner, activations=4, norms=1, rms_norm=False)
    stack = Stack("model.layers", count, layer)
    outside = 2 * hidden + int(config["vocab_size"])  # the final norm, and the bias of the output layer
    dropout = _drops(config, "resid_pdrop", "embd_pdrop", "attention_dropout")
    return _model(config, stack, outside, hidden, tied=False, dropout=dropout)


def _gpt2(config: Config) -> Shapes:
    """GPT-2: learned positions, LayerNorm, fused projection to queries, keys and values."""
    hidden, heads, count = _sizes(config, "n_embd", "n_head", "n_layer")
    inner = int(config.get("n_inner") or 4 * hidden)
    linear = (
        Linear("attn.c_attn", 3 * hidden, hidden, "normed", bias=True),
        Linear("attn.c_proj", hidden, hidden, "normed attended", bias=True),
        Linear("mlp.c_fc", inner, hidden, "normed again", bias=True),
        Linear("mlp.c_proj", hidden, inner, "activated", bias=True),
    )
    attention = Attention(heads, hidden, hidden, fused=not _drops(config, "attn_pdrop", default=0.1), scores=(0, 3))
    layer = Layer(linear, (attention,), inner, activations=4, norms=2, rms_norm=False, transposed=True)
    stack = Stack("transformer.h", count, layer)
    dropout = _drops(config, "resid_pdrop", "embd_pdrop", "attn_pdrop", default=0.1)
    return _with_positions(config, stack, hidden, int(config.get("n_positions", 1024)), dropout=dropout)


def _gpt_neo(config: Config) -> Shapes:
    """GPT-Neo: like GPT-2, with unfused attention, which is windowed in every other layer."""
    hidden, heads, count = _sizes(config, "hidden_size", "num_heads", "num_layers")
    inner = int(config.get("intermediate_size") or 4 * hidden)
    attention = Attention(heads, hidden, hidden, fused=False, scores=(1, 0))
    linear = (
        *_attention_layers("attn.attention", "q_proj k_proj v_proj out_proj", hidden, attention, out_bias=True),
        Linear("mlp.c_fc", inner, hidden, "normed again", bias=True),
        Linear("mlp.c_proj", hidden, inner, "activated", bias=True),
    )
    layer = Layer(linear, (attention,), inner, activations=4, norms=2, rms_norm=False)
    stack = Stack("transformer.h", count, layer, windowed=count // 2, window=int(config.get("window_size", 256)))
    dropout = _drops(config, "attention_dropout", "embed_dropout", "resid_dropout")
    return _with_positions(config, stack, hidden, int(config.get("max_position_embeddings", 2048)), dropout=dropout)


def _t5(config: Config) -> Shapes:
    """T5, FLAN-T5, mT5: encoder-decoder, relative position biases, no other biases."""
    hidden, inner, heads, layers = _sizes(config, "d_model", "d_ff", "num_heads", "num_layers")
    queries = heads * int(config["d_kv"])
    shape = str(config.get("feed_forward_proj") or ("gated-gelu" if config["model_type"] != "t5" else "relu"))
    gated, relu = shape.startswith("gated"), shape.endswith("relu")
    rate = float(config.get("dropout_rate", 0.1))
    # ReLU saves its result; GELU is computed in steps that save four tensors; a gate saves both factors.
    activated = (1 if relu else 4) + (1 + (not relu) if gated else 0) + (rate > 0)
    down_input = "activated" if gated or not relu or rate > 0 else "rectified"

    def mlp_layers(number: int) -> Iterator[Linear]:
        name = f"layer.{number}.DenseReluDense"
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            yield Linear(f"{name}.{part}", inner, hidden, "normed last")
        yield Linear(f"{name}.wo", hidden, inner, down_input)

    own = Attention(heads, queries, queries, fused=rate == 0, scores=(3 if rate > 0 else 1, 0), position_bias=True)
    cross = replace(own, cross=True, position_bias=False)
    self_attention = _attention_layers("layer.0.SelfAttention", "q k v o", hidden, own)
    cross_attention = _attention_layers("layer.1.EncDecAttention", "q k v o", hidden, cross)
    encoder = Layer((*self_attention, *mlp_layers(1)), (own,), inner, activated, norms=2, rms_norm=True)
    linear = (*self_attention, *cross_attention, *mlp_layers(2))
    decoder = Layer(linear, (own, cross), inner, activated, norms=3, rms_norm=True, dropouts=3)
    stacks = (
        Stack("encoder.block", layers, encoder, encoder=True),
        Stack("decoder.block", int(config.get("num_decoder_layers") or layers), decoder),
    )
    tables = 2 * int(config.get("relative_attention_num_buckets", 32)) * heads
    # The embedding is tied if decoder outputs are scaled; older configurations have `tie_word_embeddings` instead.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    tied = bool(scaled) and config["model_type"] == "t5"
    vocabulary = int(config["vocab_size"])
    outside = tables + 2 * hidden + vocabulary * hidden * (1 if tied else 2)
    size = outside + sum(stack.parameters(hidden) for stack in stacks)
    return Shapes(size, hidden, vocabulary, stacks, tied, dropout=rate > 0)


def _bart(config: Config) -> Shapes:
    """BART and similar models: encoder-decoder, learned positions, biases."""
    hidden, names = int(config["d_model"]), "q_proj k_proj v_proj out_proj"

    def make_stack(side: str) -> Stack:
        heads, inner, count = _sizes(config, f"{side}_attention_heads", f"{side}_ffn_dim", f"{side}_layers")
        own = Attention(heads, hidden, hidden, fused=float(config.get("attention_dropout", 0)) == 0, scores=(0, 3))
        linear = _attention_layers("self_attn", names, hidden, own, bias=True)
        attentions: tuple[Attention, ...] = (own,)
        if side == "decoder":
            attentions += (replace(own, cross=True),)
            linear += _attention_layers("encoder_attn", names, hidden, attentions[1], bias=True)
        linear += (
            Linear("fc1", inner, hidden, "normed last", bias=True),
            Linear("fc2", hidden, inner, "activated", bias=True),
        )
        norms = len(attentions) + 1
        layer = Layer(linear, attentions, inner, activations=1, norms=norms, rms_norm=False, dropouts=norms)
        return Stack(f"model.{side}.layers", count, layer, encoder=side == "encoder")

    stacks = (make_stack("encoder"), make_stack("decoder"))
    vocabulary, positions = int(config["vocab_size"]), int(config.get("max_position_embeddings", 1024))
    outside = 2 * (positions + 2) * hidden + 4 * hidden + vocabulary * (hidden + 1)
    size = outside + sum(stack.parameters(hidden) for stack in stacks)
    dropout = _drops(config, "dropout", "attention_dropout", "activation_dropout")
    return Shapes(size, hidden, vocabulary, stacks, True, dropout=dropout, positions=positions)


_KNOWN: dict[str, Callable[[Config], Shapes]] = {
    "llama": lambda c: _decoder(c, tied=False),
    "mistral": lambda c: _decoder(c, tied=False),
    "qwen2": lambda c: _decoder(c, tied=False, qkv_bias=True),
    "qwen3": lambda c: _decoder(c, tied=False, qk_norm=True, head_dim=128),
    "gemma": lambda c: _decoder(c, tied=True, head_dim=256),
    "gemma2": lambda c: _decoder(c, tied=True, norms=4, head_dim=256),
    "gemma3_text": lambda c: _decoder(c, tied=True, norms=4, qk_norm=True, head_dim=256),
    "granite": lambda c: _decoder(c, tied=False),
    "phi3": _phi3,
    "phi": _phi,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "t5": _t5,
    "mt5": _t5,
    "bart": _bart,
}


def _sizes(config: Config, *names: str) -> Iterator[int]:
    return (int(config[name]) for name in names)


def _drops(config: Config, *names: str, default: float = 0) -> bool:
    """Return whether one of these dropout rates is above 0."""
    return any(float(config.get(name, default) or 0) > 0 for name in names)


def _attention_layers(
    path: str, names: str, hidden: int, attention: Attention, *, bias: bool = False, out_bias: bool | None = None
) -> tuple[Linear, ...]:
    """Return the linear layers of attention, by the names for queries, keys, values and output; `bias` is for all."""
    query, key, value, out = (f"{path}.{name}" for name in names.split())
    query_input, key_input = ("normed again", "encoded") if attention.cross else ("normed", "normed")
    return (
        Linear(query, attention.queries, hidden, query_input, bias),
        Linear(key, attention.keys, hidden, key_input, bias),
        Linear(value, attention.keys, hidden, key_input, bias),
        Linear(out, hidden, attention.queries, f"{query_input} attended", bias if out_bias is None else out_bias),
    )


def _windows(config: Config, layers: int) -> tuple[int, int]:
    """Return the number of layers with windowed attention, and the window."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return 0, 0
    kinds = config.get("layer_types")
    if kinds:
        return sum(kind == "sliding_attention" for kind in kinds), int(window)
    kind = str(config.get("model_type"))
    if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        return 0, 0
    # Attention is windowed in every other layer of Gemma 2, and in five of six layers of Gemma 3.
    share = {"gemma2": 1 / 2, "gemma3_text": 5 / 6}
    return round(layers * share.get(kind, 1)), int(window)


def _with_positions(config: Config, stack: Stack, hidden: int, positions: int, *, dropout: bool) -> Shapes:
    """Return the shapes of a decoder with learned positions and a final LayerNorm."""
    shapes = _model(config, stack, (positions + 2) * hidden, hidden, tied=True, dropout=dropout)
    return replace(shapes, positions=positions)


def _model(config: Config, stack: Stack, outside: int, hidden: int, *, tied: bool, dropout: bool) -> Shapes:
    """Return the shapes of a decoder.

    Args:
        outside: the number of parameters outside of the layers, without embedding and output layer.
    """
    vocabulary = int(config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings", tied))
    return Shapes(
        stack.parameters(hidden) + outside + vocabulary * hidden * (1 if tied else 2), hidden, vocabulary, (stack,),
        tied, dropout, softcapped=bool(config.get("final_logit_softcapping")),
        positions=int(config["max_position_embeddings"]) if config.get("max_position_embeddings") else None,
    )  # fmt: skip
