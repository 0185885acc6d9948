"""Estimate the peak memory of training by arithmetic on the shapes of a model; it reads no weights and needs no torch.

The peak is at the end of the forward pass and the beginning of the backward pass, when all saved activations and the
logits exist. docs/memory.md describes what is counted, and compares estimates with measurements.
"""

import math
from dataclasses import dataclass

from tunesmith.architecture.freezing import frozen_parameters, is_frozen, trains_embedding
from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.activations import MicroBatchShape, SavedActivations, adapted_layers
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning, QloraTuning

_GIB = 2**30
# Bytes of optimizer state per trained parameter: two moments in fp32, or in 8 bits with one scale per block of 256.
# Adafactor keeps the sums of rows and columns, which are negligible, and Muon one moment for hidden matrices.
_MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "adafactor": 0.0, "muon": 8.0, "sgd": 0.0}
_MUON_BYTES = 4.0
# Resident memory of Python, torch, transformers, peft and a tokenizer, measured (docs/memory.md). Not counted on a GPU.
_LIBRARIES_GIB = 0.46
# Below fp32, oneDNN compiles a kernel for every shape of a product and caches this many, 0.57 MiB each (measured).
ONEDNN_CACHE_SIZE = 256
ONEDNN_CACHE_GIB = ONEDNN_CACHE_SIZE * 0.57 / 1024
# On a CPU, the C library's heap keeps freed memory between live allocations. As a share of activations and logits, by
# compute bytes; measured (docs/memory.md). In fp32 full fine-tuning the gradients fill the gaps, and with activation
# checkpointing freed memory is returned to the system at once.
_HEAP_FRAGMENTATION = {4: 0.3, 2: 0.4}
# Tokens whose logits exist at the same time.
LOGITS_CHUNK = 128


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Peak memory in GiB by purpose, and the number of trained parameters.

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
        """The peak of a training step."""
        held = self.weights + self.gradients + self.optimizer + self.libraries
        return held + self.activations + self.logits + self.fragmentation

    @property
    def total(self) -> float:
        """The peak of loading and training."""
        return max(self.training, self.loading + self.libraries)


def estimate_memory(
    recipe: Recipe,
    shapes: Shapes,
    micro_batch: MicroBatchShape,
    *,
    compute_bytes: int,
    on_gpu: bool = False,
    new_tokens: int = 0,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate the memory of one rank in training.

    Args:
        micro_batch: the largest micro-batch.
        compute_bytes: bytes per value in matrix products: 4 for fp32, 2 for bf16 and fp16.
        new_tokens: tokens whose rows of the embedding and the output layer are trained besides the adapters.
        shards: number of ranks among which the matrices of all layers are divided; two layers are gathered at a time.
    """
    saved = SavedActivations(recipe, shapes, compute_bytes)
    sharded, gathered = layer_parameter_counts(shapes) if shards > 1 else (0, 0)
    offloaded = shards > 1 and on_gpu and recipe.launch.offload
    elsewhere = sharded if offloaded else sharded * (1 - 1 / shards)
    trained_elsewhere = 0.0
    if isinstance(recipe.tuning, FullTuning):
        freeze = recipe.tuning.freeze
        trainable = shapes.parameters - frozen_parameters(shapes, freeze)
        # The gradient of the embedding exists twice: it is computed as a whole and then accumulated.
        table = shapes.vocabulary * shapes.hidden * trains_embedding(shapes, freeze)
        gradients = trainable + table + gathered
        # Autocast copies all weights but the sharded ones, which are gathered in the compute precision.
        copied = shapes.parameters - sharded if compute_bytes < 4 else 0
        weights = shapes.parameters * 4.0 + copied * compute_bytes
        trained_elsewhere = elsewhere
    else:
        adapted, magnitudes = saved.adapted.values(), int(recipe.tuning.dora)
        trainable = hidden_parameters(recipe, shapes) + sum(linear.out_features for linear in adapted) * magnitudes
        trainable += new_tokens * shapes.hidden * (1 if shapes.tied else 2)
        gradients = trainable
        copies = trainable * compute_bytes * 2 if compute_bytes < 4 else 0
        weights = weights_bytes(recipe, shapes, compute_bytes) + trainable * 4 + copies
    file_bytes = shapes.parameters * shapes.stored_bytes
    # Weights that are used as stored are mapped from the file, page by page, instead of copied.
    stored_bytes, gathered_bytes = sharded_parameter_bytes(recipe, compute_bytes)
    is_mapped = not isinstance(recipe.tuning, QloraTuning) and stored_bytes == shapes.stored_bytes
    # Weights to be quantized are first read in the compute precision, into memory that stays with the heap.
    is_converted = isinstance(recipe.tuning, QloraTuning) and compute_bytes != shapes.stored_bytes
    loading = weights if is_mapped else file_bytes + weights + shapes.parameters * compute_bytes * is_converted
    if isinstance(recipe.tuning, FullTuning) and shards > 1:  # fp32 masters are made of the shard only
        loading = file_bytes + weights - elsewhere * stored_bytes
    chunk = micro_batch.trained if shapes.has_encoder else min(micro_batch.trained, LOGITS_CHUNK)
    logits = chunk * shapes.vocabulary * (12 + 2 * compute_bytes * shapes.softcapped)
    logits += micro_batch.trained * shapes.hidden * 4
    activations = saved.peak_bytes(micro_batch, logits)
    gradients_fill_gaps = isinstance(recipe.tuning, FullTuning) and compute_bytes == 4
    is_unfragmented = on_gpu or recipe.train.activation_checkpointing or gradients_fill_gaps
    libraries = _LIBRARIES_GIB + (ONEDNN_CACHE_GIB if compute_bytes < 4 else 0.0)
    return MemoryEstimate(
        weights=(weights - elsewhere * stored_bytes + gathered * gathered_bytes) / _GIB,
        gradients=(gradients - trained_elsewhere) * 4 / _GIB,
        optimizer=optimizer_state_gib(
            recipe, trainable - trained_elsewhere, hidden_parameters(recipe, shapes) - trained_elsewhere
        ),
        activations=activations / _GIB,
        logits=logits / _GIB,
        fragmentation=0.0 if is_unfragmented else _HEAP_FRAGMENTATION[compute_bytes] * (activations + logits) / _GIB,
        libraries=0.0 if on_gpu else libraries,
        loading=0.0 if on_gpu else loading / _GIB,
        offloaded=_offloaded_gib(recipe, shapes, shards, stored_bytes) if offloaded else 0.0,
        trainable_parameters=trainable,
    )


def _offloaded_gib(recipe: Recipe, shapes: Shapes, shards: int, stored_bytes: float) -> float:
    """Return the CPU memory for one rank's shard of the layers.

    Weights and gradients are pinned, and torch's allocator rounds pinned blocks up to a power of two of bytes.
    """
    parts = [(linear, stack.count) for stack in shapes.stacks for linear in stack.layer.linear]
    sizes = [linear.weights / shards for linear, count in parts for _ in range(count)]

    def pinned(bytes_per_parameter: float) -> float:
        return sum(2.0 ** math.ceil(math.log2(size * bytes_per_parameter)) for size in sizes) / _GIB

    if not isinstance(recipe.tuning, FullTuning):
        return pinned(stored_bytes)
    # The allocator keeps the blocks of the loaded weights after the fp32 masters are made of them.
    loaded = pinned(shapes.stored_bytes) if shapes.stored_bytes < stored_bytes else 0.0
    return loaded + pinned(stored_bytes) + pinned(4) + optimizer_state_gib(recipe, sum(sizes), sum(sizes))


def optimizer_state_gib(recipe: Recipe, trained: float, hidden: float) -> float:
    """Return the optimizer state for a number of trained parameters, `hidden` of them in the matrices of layers."""
    others = trained - hidden if recipe.train.optimizer == "muon" else trained
    return (others * _MOMENT_BYTES[recipe.train.optimizer] + (trained - others) * _MUON_BYTES) / _GIB


def hidden_parameters(recipe: Recipe, shapes: Shapes) -> int:
    """Return the number of trained parameters in the matrices of layers, or in their adapters."""
    if not isinstance(recipe.tuning, FullTuning):
        return sum(linear.adapter(recipe.tuning.rank) for _, linear in adapted_layers(recipe, shapes))
    return sum(linear.weights for name, linear in shapes.linear() if not is_frozen(name, recipe.tuning.freeze))


def layer_parameter_counts(shapes: Shapes) -> tuple[int, int]:
    """Return the parameters of the matrices of all layers, and of the two layers that are gathered at a time."""
    sizes = [sum(linear.weights for linear in stack.layer.linear) for stack in shapes.stacks]
    total = sum(size * stack.count for size, stack in zip(sizes, shapes.stacks, strict=True))
    if shapes.known:
        return total, 2 * max(sizes, default=0)
    # In an unknown architecture every matrix is a stack. How the matrices form layers is unknown; the number of layers
    # is that of the stacks without a matrix.
    layers = sum(stack.count for size, stack in zip(sizes, shapes.stacks, strict=True) if not size)
    return total, 2 * total // max(1, layers)


def weights_bytes(recipe: Recipe, shapes: Shapes, compute_bytes: int) -> float:
    """Return the bytes of the frozen weights in the compute precision, or quantized with their scales.

    bitsandbytes quantizes linear layers, and not the experts of a mixture.

    bitsandbytes has one fp32 scale per row in 8 bits. In 4 bits it has one scale per block of 64 weights, in fp32 or,
    with double quantization, in 8 bits with an fp32 scale for every 256 scales (Dettmers et al. 2023, arXiv:2305.14314,
    section 3).
    """
    tuning = recipe.tuning
    if not isinstance(tuning, QloraTuning):
        return float(shapes.parameters * compute_bytes)
    matrices = [linear for _, linear in shapes.linear() if linear.experts == 1]
    quantized = sum(linear.weights for linear in matrices)
    if tuning.bits == 8:
        quantized_bytes = float(quantized + sum(linear.out_features * 4 for linear in matrices))
    else:
        scale = 4 if tuning.double_quantization is False else 1 + 4 / 256
        quantized_bytes = quantized * (0.5 + scale / 64)
    return (shapes.parameters - quantized) * compute_bytes + quantized_bytes


def sharded_parameter_bytes(recipe: Recipe, compute_bytes: int) -> tuple[float, float]:
    """Return the bytes of a sharded parameter: as stored in its shard, and as gathered.

    The scales of quantized weights are not sharded.
    """
    if isinstance(recipe.tuning, QloraTuning):
        return recipe.tuning.bits / 8, recipe.tuning.bits / 8
    return 4 if isinstance(recipe.tuning, FullTuning) else compute_bytes, compute_bytes
