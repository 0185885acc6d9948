"""How much memory a run takes, from the shapes of its weights alone: no weights are read, no torch is imported.

Counted: weights, gradients, AdamW's two moments, and the activations and logits of one micro-batch. The activation
count follows Korthikanti et al. 2022 (arXiv:2205.05198), section 4, without tensor parallelism.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.schema import FullTuning, LoraTuning, QloraTuning, Recipe

_GIB = 2**30
# Tables of vectors that are looked up, not multiplied: embeddings of tokens and positions, T5's of distances.
_LOOKED_UP = ("embed", "wpe", "relative_attention_bias")
# Whose linear layers are kept as [in, out].
_STORED_TURNED = ("gpt2", "openai-gpt")
# What an optimizer remembers of a trained number: two moments in fp32, or in 8 bits with a scale a block of 256 each.
# Adafactor keeps sums of rows and columns, which is next to nothing.
_MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "adafactor": 0.0, "sgd": 0.0}
_LIBRARIES_GIB = 0.6  # torch, transformers and Python themselves, resident


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes that memory follows from. `linear` lists (module, out, in) of every linear layer but the output."""

    parameters: int
    linear: tuple[tuple[str, int, int], ...]
    hidden: int
    layers: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Memory:
    """GiB by purpose."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    trainable_parameters: int

    @property
    def total(self) -> float:
        """Everything, libraries included."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + _LIBRARIES_GIB


def shapes_of(folder: Path) -> Shapes:
    """Read the shapes from the headers of a model folder's safetensors files and its config.

    Raises:
        RecipeError: a file that the folder's index names is missing.
    """
    tensors: dict[str, list[int]] = {}
    for file in _weight_files(folder):
        with file.open("rb") as raw:
            header = json.loads(raw.read(struct.unpack("<Q", raw.read(8))[0]))
        tensors |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    vocabulary = int(config.get("vocab_size", 0))
    turned = config.get("model_type") in _STORED_TURNED
    linear = [
        (name.removesuffix(".weight"), shape[turned], shape[not turned])
        for name, shape in tensors.items()
        if len(shape) == 2 and vocabulary not in shape and not any(part in name for part in _LOOKED_UP)
    ]
    size = sum(_product(shape) for shape in tensors.values())
    hidden = int(config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 0)
    return Shapes(size, tuple(linear), hidden, _layers(config), vocabulary)


def _layers(config: dict[str, Any]) -> int:
    """Return the number of layers, those of an encoder and of a decoder together."""
    if "encoder_layers" in config:  # BART and kin
        return int(config["encoder_layers"]) + int(config["decoder_layers"])
    if config.get("num_decoder_layers"):  # T5 and kin
        return int(config["num_layers"]) + int(config["num_decoder_layers"])
    return int(config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads; some models bring the same weights again in another layout."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if lost := [name for name in names if not (folder / name).exists()]:
            raise RecipeError(f"lacks {lost[0]}, which its index names", where=str(folder), hint="fetch it again")
        return [folder / name for name in names]
    one = folder / "model.safetensors"
    return [one] if one.exists() else sorted(folder.glob("*.safetensors"))


def memory_of(recipe: Recipe, shapes: Shapes, *, compute_bytes: int, tokens: int, trained_tokens: int) -> Memory:
    """Return the memory of a run.

    Args:
        compute_bytes: bytes of a number in matrix products (2 for bf16).
        tokens: padded tokens of the largest micro-batch.
        trained_tokens: trained tokens in it, which go through the output layer.
    """
    if isinstance(recipe.tuning, FullTuning):
        trainable, weights = shapes.parameters, shapes.parameters * 4.0
    else:
        target, rank, lengths = recipe.tuning.target, recipe.tuning.rank, int(recipe.tuning.dora)
        adapted = [(out, inner) for name, out, inner in shapes.linear if _is_adapted(name, target)]
        trainable = sum((out + inner) * rank + out * lengths for out, inner in adapted)
        weights = _frozen_bytes(recipe.tuning, shapes, compute_bytes)
    widths = sum(out + inner for _, out, inner in shapes.linear)
    # Every linear layer keeps its input, and what stands between layers (norms, gates, attention) about as much again.
    activations = tokens * (widths + 8 * shapes.hidden * shapes.layers) * compute_bytes
    logits = trained_tokens * shapes.vocabulary * (compute_bytes + 3 * 4)
    adapters = 0 if isinstance(recipe.tuning, FullTuning) else trainable * 4
    return Memory(
        weights=(weights + adapters) / _GIB,
        gradients=trainable * 4 / _GIB,
        optimizer=trainable * _MOMENT_BYTES[recipe.train.optimizer] / _GIB,
        activations=activations / _GIB,
        logits=logits / _GIB,
        trainable_parameters=trainable,
    )


def _frozen_bytes(tuning: LoraTuning | QloraTuning, shapes: Shapes, compute_bytes: int) -> float:
    """Return the bytes of weights that are not trained; of quantized ones the scales too, as bitsandbytes keeps them.

    8 bits have a scale in fp32 a row. 4 bits have one a block of 64 weights: in fp32, or doubly quantized in 8 bits
    with one in fp32 for every 256 of those (Dettmers et al. 2023, arXiv:2305.14314, section 3).
    """
    if isinstance(tuning, LoraTuning):
        return float(shapes.parameters * compute_bytes)
    quantized = sum(out * inner for _, out, inner in shapes.linear)
    if tuning.bits == 8:
        small = float(quantized + sum(out * 4 for _, out, _ in shapes.linear))
    else:
        scale = 4 if tuning.double_quantization is False else 1 + 4 / 256
        small = quantized * (0.5 + scale / 64)
    return (shapes.parameters - quantized) * compute_bytes + small


def _is_adapted(module: str, target: str | tuple[str, ...]) -> bool:
    """Say whether peft would adapt a linear layer: named in full, or by the end of its name."""
    return target == "all-linear" or any(f".{module}".endswith(f".{name}") for name in target)


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
