"""Estimate the activations that layers save for the backward pass, by arithmetic on the shapes of a model.

The saved tensors were read off torch's autograd graph, operation by operation, for each architecture;
`tests/unit/kernels/test_saved_tensors.py` compares them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.architecture.shapes import Attention, Layer, Linear, Shapes, Stack
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning, LoraBase, LoraTuning

# Inputs of linear layers that the operation before has saved already.
_SAVED_INPUTS = ("attended", "rectified")


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """The size of one micro-batch.

    Attributes:
        tokens: padded tokens that the decoder reads, in sequences of `width`.
        trained: tokens that go through the output layer.
        masked: rows are packed, with a block-diagonal mask.
        by_row: rows are packed, with attention computed per row.
        source_tokens: padded tokens that the encoder reads, in sequences of `source_width`.
    """

    tokens: int
    width: int
    trained: int
    masked: bool = False
    by_row: bool = False
    source_tokens: int = 0
    source_width: int = 0


class SavedActivations:
    """The activations that training by one recipe saves.

    Args:
        compute_bytes: bytes per value in matrix products.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes, compute_bytes: int) -> None:
        self._recipe, self._shapes, self._compute = recipe, shapes, compute_bytes
        self._full = isinstance(recipe.tuning, FullTuning)
        lora = recipe.tuning if isinstance(recipe.tuning, LoraBase) else None
        self.adapted = dict(adapted_layers(recipe, shapes))
        self._rank = lora.rank if lora else 0
        self._has_dropout = bool(lora and lora.dropout > 0)
        self._dora = bool(lora and lora.dora)

    def peak_bytes(self, micro_batch: MicroBatchShape, logits: float) -> float:
        """Return the peak bytes of activations, without the `logits` bytes that the loss needs.

        These are free again when the backward pass reaches the layers, so its gradients can reuse them.
        """
        saved = layer_inputs = 0.0
        layers = 0
        for stack in self._shapes.stacks:
            saved += sum(self._layer(stack, number, micro_batch) for number in range(stack.count))
            if stack.layer.attention:  # stacks without attention are single matrices of an unknown architecture
                layers += stack.count
                layer_inputs += stack.count * self._tokens(stack, micro_batch) * self._shapes.hidden * self._residual
        other = micro_batch.tokens * self._shapes.hidden * self._residual  # the last norm
        other += micro_batch.source_tokens * self._shapes.hidden * self._compute
        other += micro_batch.width * micro_batch.width * (self._compute + 1) if micro_batch.masked else 0
        backward = self._backward(micro_batch)
        if self._recipe.train.activation_checkpointing:  # one layer is computed again after the loss is freed
            return layer_inputs + other + max(0.0, saved / max(1, layers) + backward - logits)
        return saved + other + max(0.0, backward - logits)

    @property
    def _residual(self) -> int:
        """Bytes per value of the residual stream: autocast keeps it in fp32 if all weights are trained."""
        return 4 if self._full else self._compute

    def _backward(self, micro_batch: MicroBatchShape) -> float:
        """Return the bytes of the gradients that exist at the same time in the backward pass of a layer."""
        mlp_width = max((stack.layer.mlp_width for stack in self._shapes.stacks), default=0)
        tokens = max(micro_batch.tokens, micro_batch.source_tokens)
        return tokens * (3 * mlp_width + 2 * self._shapes.hidden) * self._compute

    def _tokens(self, stack: Stack, micro_batch: MicroBatchShape) -> int:
        return micro_batch.source_tokens if stack.encoder else micro_batch.tokens

    def _layer(self, stack: Stack, number: int, micro_batch: MicroBatchShape) -> float:
        layer, tokens = stack.layer, self._tokens(stack, micro_batch)
        norm = 4 if layer.rms_norm else self._residual
        per_norm = 2 if layer.rms_norm and self._full else 1
        saved = float(tokens * self._shapes.hidden * norm * layer.norms * per_norm)
        if self._shapes.dropout:
            saved += tokens * self._shapes.hidden * self._residual * layer.dropouts
        saved += tokens * layer.mlp_width * layer.activations * self._compute
        windowed = number < stack.windowed
        saved += sum(self._attention(attention, stack, micro_batch, windowed=windowed) for attention in layer.attention)
        return saved + self._linear_inputs(layer, stack, number, micro_batch)

    def _attention(self, attention: Attention, stack: Stack, micro_batch: MicroBatchShape, *, windowed: bool) -> float:
        tokens = self._tokens(stack, micro_batch)
        width = micro_batch.source_width if stack.encoder else micro_batch.width
        kv_tokens, kv_width = (
            (micro_batch.source_tokens, micro_batch.source_width) if attention.cross else (tokens, width)
        )
        masked = micro_batch.masked or stack.encoder or attention.cross or (windowed and width > stack.window)
        # With a mask, or without a fused kernel, keys and values are repeated for every query head.
        keys = attention.queries if masked or not self._is_fused(attention) else attention.keys
        saved = (2 * tokens * attention.queries + 2 * kv_tokens * keys) * self._compute
        if micro_batch.by_row:  # the outputs of the rows are concatenated for the next layer
            saved += tokens * attention.queries * self._compute
        if attention.qk_norm:
            saved += tokens * (attention.queries + attention.keys) * 4 * (2 if self._full else 1)
        if not self._is_fused(attention):
            fp32_values, compute_values = attention.scores
            return saved + tokens * kv_width * attention.heads * (fp32_values * 4 + compute_values * self._compute)
        saved += tokens * attention.heads * 4
        if attention.position_bias:
            return saved + tokens * kv_width * attention.heads * self._compute
        if masked and not micro_batch.masked:  # each layer converts the boolean mask into values
            saved += tokens * kv_width * self._compute
        return saved

    def _linear_inputs(self, layer: Layer, stack: Stack, number: int, micro_batch: MicroBatchShape) -> float:
        """Return the bytes of the inputs of linear layers that are saved to compute gradients."""
        tokens = self._tokens(stack, micro_batch)
        saved, readers = 0.0, Counter[str]()
        for linear in layer.linear:
            if not self._full and stack.name_of(number, linear) not in self.adapted:
                continue
            rows = (micro_batch.source_tokens if linear.input == "encoded" else tokens) * linear.active
            if linear.experts > 1 and not self._full:  # peft adds the update to a copy of all experts' weights
                saved += linear.weights * self._compute
            readers[linear.input] += 1
            saved += rows * self._rank * self._compute
            if self._dora:  # peft computes DoRA in fp32 and saves two to three results
                saved += 2.5 * rows * linear.out_features * 4
            if self._has_dropout and not self._is_lora_fused(layer):  # peft saves the output and the mask of dropout
                saved += 2 * rows * linear.in_features * self._compute
                continue
            if self._has_dropout:  # the fast path saves a mask of one byte per value
                saved += rows * linear.in_features
            is_saved = linear.input.endswith(_SAVED_INPUTS)
            if self._full and self._compute < 4 and "normed" in linear.input and not is_saved:
                saved += rows * linear.in_features * self._compute  # autocast casts the input for each product
            elif readers[linear.input] == 1 and linear.input != "encoded":
                is_shared = is_saved and self._saves_output(layer, linear)
                saved += 0 if is_shared else rows * linear.in_features * self._compute
        return saved

    def _is_lora_fused(self, layer: Layer) -> bool:
        """Whether the fast path computes a layer's adapters."""
        return isinstance(self._recipe.tuning, LoraTuning) and not self._dora and not layer.transposed

    def _is_fused(self, attention: Attention) -> bool:
        trains_bias = self._full and attention.position_bias  # fused kernels compute no gradient of the position bias
        return attention.fused and self._recipe.model.attention != "eager" and not trains_bias

    def _saves_output(self, layer: Layer, linear: Linear) -> bool:
        """Whether the operation before a linear layer has saved its output; fused attention does."""
        return linear.input == "rectified" or all(self._is_fused(attention) for attention in layer.attention)


def adapted_layers(recipe: Recipe, shapes: Shapes) -> Iterator[tuple[str, Linear]]:
    """Yield the name and sizes of each linear layer, and of the experts of each layer, that get an adapter."""
    target = recipe.tuning.target if isinstance(recipe.tuning, LoraBase) else ()
    return ((name, linear) for name, linear in shapes.linear() if _is_adapted(name, linear, target))


def _is_adapted(module: str, linear: Linear, target: str | tuple[str, ...]) -> bool:
    """Whether peft adapts a linear layer: `target` has its full name or the end of it. Experts need `all-linear`."""
    if target == "all-linear":
        return True
    return linear.experts == 1 and any(f".{module}".endswith(f".{name}") for name in target)
