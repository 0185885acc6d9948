"""How much memory training takes at its peak, by arithmetic on a model's shapes: no weights, no torch.

The peak is in the forward pass's end and the backward pass's beginning, when everything that a layer keeps for the way
back is there at once. What is kept was read off torch's own graph, operation by operation; docs/memory.md tells it, and
how near to measurements it comes.
"""

import math
from collections import Counter
from dataclasses import dataclass

from tunesmith.architecture.shapes import Attention, Layer, Linear, Shapes, Stack
from tunesmith.recipe.schema import FullTuning, LoraBase, LoraTuning, QloraTuning, Recipe

_GIB = 2**30
# What an optimizer remembers of a trained number: two moments in fp32, or in 8 bits with a scale a block of 256 each.
# Adafactor keeps sums of rows and columns, which is next to nothing.
_MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "adafactor": 0.0, "sgd": 0.0}
# torch, transformers, peft, a tokenizer and Python themselves, resident: measured, docs/memory.md. Not on a GPU.
_LIBRARIES_GIB = 0.46
# Below fp32, oneDNN compiles code for every shape of product and keeps it for this many, 0.57 MiB each (measured).
ONEDNN_CACHE_SIZE = 256
ONEDNN_CACHE_GIB = ONEDNN_CACHE_SIZE * 0.57 / 1024
# On a processor the C library's heap keeps freed memory in pieces between what is kept: this much more is resident than
# layers and loss hold, by the bytes of a number in products. Measured, docs/memory.md. In fp32 the gradients of all
# weights fill the pieces, and with checkpointed activations freed memory is given back at once.
_IN_PIECES = {4: 0.3, 2: 0.4}
# Tokens whose logits are held at once.
LOGITS_CHUNK = 128
_KEPT_ALREADY = ("attended", "rectified")


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """One forward and backward pass.

    Attributes:
        tokens: padded tokens that the decoder reads, `width` in each sequence.
        trained: how many of them go through the output layer.
        masked: rows stand side by side, and a mask keeps them apart.
        by_row: rows stand side by side, and the attention of each is computed by itself.
        source_tokens: padded tokens that an encoder reads, `source_width` in each row.
    """

    tokens: int
    width: int
    trained: int
    masked: bool = False
    by_row: bool = False
    source_tokens: int = 0
    source_width: int = 0


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """GiB by purpose at the peak of training, and how many numbers are trained.

    `activations` are saved for the backward pass, `logits` serves the output layer and the loss, and `fragmentation` is
    free heap in blocks too small to use. `loading` is the peak before training: the file, and the weights made of it.
    `offloaded` is CPU memory that holds a GPU's shard of the layers.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    fragmentation: float
    libraries: float
    loading: float
    offloaded: float
    trainable_parameters: int

    @property
    def training(self) -> float:
        """Everything while a step is taken."""
        held = self.weights + self.gradients + self.optimizer + self.libraries
        return held + self.activations + self.logits + self.fragmentation

    @property
    def total(self) -> float:
        """Everything, at the worst moment."""
        return max(self.training, self.loading + self.libraries)


def estimate_memory(
    recipe: Recipe,
    shapes: Shapes,
    one: MicroBatchShape,
    *,
    compute_bytes: int,
    on_gpu: bool = False,
    new_tokens: int = 0,
    parts: int = 1,
) -> MemoryEstimate:
    """Return the memory that training needs while it makes its largest pass.

    Args:
        parts: over how many processes the matrices of all layers are divided; two layers at a time are whole.
        compute_bytes: bytes of a number in matrix products (4 for fp32, 2 for bf16 and fp16).
        new_tokens: tokens whose rows of embedding and output layer are trained beside adapters.
    """
    kept = _Kept(recipe, shapes, compute_bytes)
    adapted = kept.adapted
    divided, at_once = layer_parameter_counts(shapes) if parts > 1 else (0, 0)
    offloaded = parts > 1 and on_gpu and recipe.launch.offload
    elsewhere = divided if offloaded else divided * (1 - 1 / parts)
    trained_elsewhere = 0.0
    if isinstance(recipe.tuning, FullTuning):
        trainable = shapes.parameters
        gradients = trainable + shapes.vocabulary * shapes.hidden + at_once  # an embedding's is made whole, and added
        # Autocast keeps copies of all weights but those that are divided, which are put together as what it wants.
        weights = trainable * 4.0 + ((trainable - divided) * compute_bytes if compute_bytes < 4 else 0)
        trained_elsewhere = elsewhere
    else:
        rank, lengths = recipe.tuning.rank, int(recipe.tuning.dora)
        trainable = sum(
            (part.out_features + part.in_features) * rank + part.out_features * lengths for part in adapted.values()
        )
        trainable += new_tokens * shapes.hidden * (1 if shapes.tied else 2)
        gradients = trainable
        copies = trainable * compute_bytes * 2 if compute_bytes < 4 else 0
        weights = weights_bytes(recipe, shapes, compute_bytes) + trainable * 4 + copies
    read = shapes.parameters * shapes.stored_bytes
    # What is kept as it is in the file stays there, and is brought in page by page.
    kept_bytes, whole_bytes = sharded_parameter_bytes(recipe, compute_bytes)
    as_stored = not isinstance(recipe.tuning, QloraTuning) and kept_bytes == shapes.stored_bytes
    # What is quantized is read in the compute precision first, in pieces that stay with the heap.
    converted = isinstance(recipe.tuning, QloraTuning) and compute_bytes != shapes.stored_bytes
    loading = weights if as_stored else read + weights + shapes.parameters * compute_bytes * converted
    if isinstance(recipe.tuning, FullTuning) and parts > 1:  # masters are made of parts
        loading = read + weights - elsewhere * kept_bytes
    chunk = one.trained if shapes.has_encoder else min(one.trained, LOGITS_CHUNK)
    logits = chunk * shapes.vocabulary * (12 + 2 * compute_bytes * shapes.softcapped) + one.trained * shapes.hidden * 4
    activations = kept.bytes_of(one, logits)
    filled = isinstance(recipe.tuning, FullTuning) and compute_bytes == 4
    whole_heap = on_gpu or recipe.train.activation_checkpointing or filled
    libraries = _LIBRARIES_GIB + (ONEDNN_CACHE_GIB if compute_bytes < 4 else 0.0)
    return MemoryEstimate(
        weights=(weights - elsewhere * kept_bytes + at_once * whole_bytes) / _GIB,
        gradients=(gradients - trained_elsewhere) * 4 / _GIB,
        optimizer=optimizer_state_gib(recipe, trainable - trained_elsewhere),
        activations=activations / _GIB,
        logits=logits / _GIB,
        fragmentation=0.0 if whole_heap else _IN_PIECES[compute_bytes] * (activations + logits) / _GIB,
        libraries=0.0 if on_gpu else libraries,
        loading=0.0 if on_gpu else loading / _GIB,
        offloaded=_offloaded_gib(recipe, shapes, parts, kept_bytes) if offloaded else 0.0,
        trainable_parameters=trainable,
    )


def _offloaded_gib(recipe: Recipe, shapes: Shapes, parts: int, kept_bytes: float) -> float:
    """Return the GiB of the machine's memory that hold a GPU's part of the layers.

    Weights and gradients are pinned, and torch's allocator rounds what it pins up to a power of two of bytes.
    """
    sizes = [
        part.out_features * part.in_features / parts
        for s in shapes.stacks
        for part in s.layer.linear
        for _ in range(s.count)
    ]

    def pinned(number_bytes: float) -> float:
        return sum(2.0 ** math.ceil(math.log2(size * number_bytes)) for size in sizes) / _GIB

    if not isinstance(recipe.tuning, FullTuning):
        return pinned(kept_bytes)
    # What masters are made of stays with the allocator.
    read = pinned(shapes.stored_bytes) if shapes.stored_bytes < kept_bytes else 0.0
    return read + pinned(kept_bytes) + pinned(4) + optimizer_state_gib(recipe, sum(sizes))


def optimizer_state_gib(recipe: Recipe, trained: float) -> float:
    """Return the GiB that the recipe's optimizer remembers of so many trained numbers."""
    return trained * _MOMENT_BYTES[recipe.train.optimizer] / _GIB


def layer_parameter_counts(shapes: Shapes) -> tuple[int, int]:
    """Return how many numbers the matrices of all layers have, and those of the two that are whole at once."""
    sizes = [sum(part.out_features * part.in_features for part in stack.layer.linear) for stack in shapes.stacks]
    everything = sum(size * stack.count for size, stack in zip(sizes, shapes.stacks, strict=True))
    if shapes.known:
        return everything, 2 * max(sizes, default=0)
    # Every matrix is a stack here, and nobody says which of them make a layer, but how many layers there are.
    layers = sum(stack.count for size, stack in zip(sizes, shapes.stacks, strict=True) if not size)
    return everything, 2 * everything // max(1, layers)


def weights_bytes(recipe: Recipe, shapes: Shapes, compute_bytes: int) -> float:
    """Return the bytes of weights as they are computed with; of quantized ones the scales too, as bitsandbytes does.

    8 bits have a scale in fp32 a row. 4 bits have one a block of 64 weights: in fp32, or doubly quantized in 8 bits
    with one in fp32 for every 256 of those (Dettmers et al. 2023, arXiv:2305.14314, section 3).
    """
    tuning = recipe.tuning
    if not isinstance(tuning, QloraTuning):
        return float(shapes.parameters * compute_bytes)
    matrices = [part for _, part in shapes.linear()]
    quantized = sum(part.out_features * part.in_features for part in matrices)
    if tuning.bits == 8:
        small = float(quantized + sum(part.out_features * 4 for part in matrices))
    else:
        scale = 4 if tuning.double_quantization is False else 1 + 4 / 256
        small = quantized * (0.5 + scale / 64)
    return (shapes.parameters - quantized) * compute_bytes + small


def sharded_parameter_bytes(recipe: Recipe, compute_bytes: int) -> tuple[float, float]:
    """Return the bytes of a number of what is divided: as parts are kept, and as they are put together.

    Of quantized weights every process has all scales.
    """
    if isinstance(recipe.tuning, QloraTuning):
        return recipe.tuning.bits / 8, recipe.tuning.bits / 8
    return 4 if isinstance(recipe.tuning, FullTuning) else compute_bytes, compute_bytes


class _Kept:
    """What layers keep for the way back, under one recipe."""

    def __init__(self, recipe: Recipe, shapes: Shapes, compute: int) -> None:
        self._recipe, self._shapes, self._compute = recipe, shapes, compute
        self._full = isinstance(recipe.tuning, FullTuning)
        tuning = recipe.tuning if isinstance(recipe.tuning, LoraBase) else None
        self.adapted: dict[str, Linear] = {
            name: part for name, part in shapes.linear() if tuning and _is_adapted(name, tuning.target)
        }
        self._rank = tuning.rank if tuning else 0
        self._drops = bool(tuning and tuning.dropout > 0)
        self._dora = bool(tuning and tuning.dora)

    def bytes_of(self, one: MicroBatchShape, logits: float) -> float:
        """Return the bytes that are kept at the peak, beside those of the loss (`logits`)."""
        everything = beginnings = 0.0
        layers = 0
        for stack in self._shapes.stacks:
            everything += sum(self._layer(stack, number, one) for number in range(stack.count))
            if stack.layer.attention:  # of an architecture that is not described, matrices are stacks of their own
                layers += stack.count
                beginnings += stack.count * self._tokens(stack, one) * self._shapes.hidden * self._stream
        beside = one.tokens * self._shapes.hidden * self._stream  # the last norm
        beside += one.source_tokens * self._shapes.hidden * self._compute
        beside += one.width * one.width * (self._compute + 1) if one.masked else 0
        if self._recipe.train.activation_checkpointing:  # one layer again, with the loss's memory given back
            return beginnings + beside + max(0.0, everything / max(1, layers) + self._way_back(one) - logits)
        return everything + beside + max(0.0, self._way_back(one) - logits)

    @property
    def _stream(self) -> int:
        """Bytes of a number between layers: of trained weights' copies fp32."""
        return 4 if self._full else self._compute

    def _way_back(self, one: MicroBatchShape) -> float:
        """Return the bytes of the gradients that stand at once between the operations of a layer."""
        layers = [stack.layer for stack in self._shapes.stacks]
        inner = max((layer.mlp_width for layer in layers), default=0)
        return max(one.tokens, one.source_tokens) * (3 * inner + 2 * self._shapes.hidden) * self._compute

    def _tokens(self, stack: Stack, one: MicroBatchShape) -> int:
        return one.source_tokens if stack.encoder else one.tokens

    def _layer(self, stack: Stack, number: int, one: MicroBatchShape) -> float:
        layer, tokens = stack.layer, self._tokens(stack, one)
        norm = 4 if layer.rms_norm else self._stream
        twice = 2 if layer.rms_norm and self._full else 1
        kept = float(tokens * self._shapes.hidden * norm * layer.norms * twice)
        if self._shapes.dropout:
            kept += tokens * self._shapes.hidden * self._stream * layer.dropouts
        kept += tokens * layer.mlp_width * layer.activations * self._compute
        windowed = number < stack.windowed
        kept += sum(self._attention(attention, stack, one, windowed=windowed) for attention in layer.attention)
        return kept + self._inputs(layer, stack, number, one)

    def _attention(self, attention: Attention, stack: Stack, one: MicroBatchShape, *, windowed: bool) -> float:
        tokens = self._tokens(stack, one)
        width = one.source_width if stack.encoder else one.width
        heard, reach = (one.source_tokens, one.source_width) if attention.cross else (tokens, width)
        masked = one.masked or stack.encoder or attention.cross or (windowed and width > stack.window)
        keys = attention.queries if masked or not self._is_fused(attention) else attention.keys
        kept = (2 * tokens * attention.queries + 2 * heard * keys) * self._compute
        if one.by_row:  # what each row gives is put together to what the next layer reads
            kept += tokens * attention.queries * self._compute
        if attention.qk_norm:
            kept += tokens * (attention.queries + attention.keys) * 4 * (2 if self._full else 1)
        if not self._is_fused(attention):
            whole, short = attention.scores
            return kept + tokens * reach * attention.heads * (whole * 4 + short * self._compute)
        kept += tokens * attention.heads * 4
        if attention.position_bias:
            return kept + tokens * reach * attention.heads * self._compute
        if masked and not one.masked:  # every layer turns the mask into numbers of its own
            kept += tokens * reach * self._compute
        return kept

    def _inputs(self, layer: Layer, stack: Stack, number: int, one: MicroBatchShape) -> float:
        """Return the bytes of what linear layers read, where their gradients need it."""
        tokens = self._tokens(stack, one)
        kept, readers = 0.0, Counter[str]()
        for part in layer.linear:
            if not self._full and stack.name_of(number, part) not in self.adapted:
                continue
            mine = one.source_tokens if part.input == "encoded" else tokens
            readers[part.input] += 1
            kept += mine * self._rank * self._compute
            if self._dora:  # peft computes it in fp32, and keeps two to three of its results
                kept += 2.5 * mine * part.out_features * 4
            if self._drops and not self._is_stacked(layer):  # peft keeps what is left, and what was drawn
                kept += 2 * mine * part.in_features * self._compute
                continue
            if self._drops:  # the fast path keeps a byte of what was drawn
                kept += mine * part.in_features
            if self._full and self._compute < 4 and "normed" in part.input and not part.input.endswith(_KEPT_ALREADY):
                kept += mine * part.in_features * self._compute  # every product takes a copy of its own
            elif readers[part.input] == 1 and part.input != "encoded":
                shared = part.input.endswith(_KEPT_ALREADY) and self._is_kept(layer, part)
                kept += 0 if shared else mine * part.in_features * self._compute
        return kept

    def _is_stacked(self, layer: Layer) -> bool:
        """Say whether the fast path multiplies a layer's adapters as one."""
        return isinstance(self._recipe.tuning, LoraTuning) and not self._dora and not layer.transposed

    def _is_fused(self, attention: Attention) -> bool:
        # A table that is trained beside the scores is nothing that a fused kernel has gradients for.
        return (
            attention.fused and self._recipe.model.attention != "eager" and not (self._full and attention.position_bias)
        )

    def _is_kept(self, layer: Layer, part: Linear) -> bool:
        """Say whether what made a layer's input keeps it: a fused attention does."""
        return part.input == "rectified" or all(self._is_fused(attention) for attention in layer.attention)


def _is_adapted(module: str, target: str | tuple[str, ...]) -> bool:
    """Say whether peft would adapt a linear layer: named in full, or by the end of its name."""
    return target == "all-linear" or any(f".{module}".endswith(f".{name}") for name in target)
