"""The layer sizes of a model, from which its memory is estimated, and the tensors each layer saves for backward."""

from collections.abc import Iterator
from dataclasses import dataclass

UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer with a weight [out_features, in_features], or the experts of a mixture, with one such weight each.

    The operation that computes an `input` ending in `attended` or `rectified` may have saved it for backward already.

    Attributes:
        input: layers with the same input share one input tensor.
        experts: the number of weights, which are one parameter [experts, ., .]; 1 for a linear layer.
        active: the number of experts that each token uses.
        ranks: peft multiplies the adapter's rank by this.
    """

    name: str
    out_features: int
    in_features: int
    input: str
    bias: bool = False
    experts: int = 1
    active: int = 1
    ranks: int = 1

    @property
    def weights(self) -> int:
        """The number of weights, without the bias."""
        return self.experts * self.out_features * self.in_features

    def adapter(self, rank: int) -> int:
        """Return the number of parameters in the matrices A and B of LoRA."""
        return self.experts * self.ranks * rank * (self.out_features + self.in_features)

    @property
    def parameters(self) -> int:
        """The number of weights, with the bias."""
        return self.weights + self.out_features * self.bias


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention with `heads` heads.

    Attributes:
        queries: the width of all query heads together.
        keys: the width of all key heads together, and also of all value heads.
        fused: computed by one kernel that saves no scores; otherwise scores [heads, length, length] are saved.
        scores: if not fused, the number of fp32 values and of values in the compute precision saved per score.
        cross: cross-attention, with keys and values from the encoder.
        position_bias: adds a saved table to its scores (T5's relative positions).
        qk_norm: normalizes queries and keys.
    """

    heads: int
    queries: int
    keys: int
    fused: bool = True
    scores: tuple[int, int] = (1, 2)
    cross: bool = False
    position_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stack.

    Attributes:
        mlp_width: the inner width of the MLP.
        activations: the number of tensors of `mlp_width` saved for backward, besides the input of the down projection.
        norms: the number of norms over the hidden width.
        rms_norm: norms are RMSNorms computed in fp32; two tensors are saved for each one that is trained.
        dropouts: the number of dropouts over the hidden width, if the model has a dropout rate.
        transposed: weights are stored as [in, out] (GPT-2's Conv1D), so the fast path skips their adapters.
    """

    linear: tuple[Linear, ...]
    attention: tuple[Attention, ...]
    mlp_width: int
    activations: int
    norms: int
    rms_norm: bool
    dropouts: int = 2
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Consecutive equal layers. In `windowed` of them, attention is limited to a window of `window` tokens."""

    prefix: str
    count: int
    layer: Layer
    encoder: bool = False
    windowed: int = 0
    window: int = 0

    def parameters(self, hidden: int) -> int:
        """Return the number of parameters, with those of the norms over `hidden` values and over each head."""
        norms = self.layer.norms * hidden * (1 if self.layer.rms_norm else 2)  # only LayerNorm has a bias
        norms += sum(2 * part.queries // part.heads for part in self.layer.attention if part.qk_norm)
        return self.count * (norms + sum(part.parameters for part in self.layer.linear))

    def name_of(self, number: int, part: Linear) -> str:
        """Return the module name of a linear layer in layer `number`."""
        return f"{self.prefix}.{number}.{part.name}" if part.name else self.prefix


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of a model.

    Attributes:
        dropout: the model's own configuration uses dropout in training.
        softcapped: the final logits are soft-capped.
        stored_bytes: bytes per parameter in its weight files.
        known: the architecture is described in `families.py`; otherwise everything but the linear layers is a guess.
    """

    parameters: int
    hidden: int
    vocabulary: int
    stacks: tuple[Stack, ...]
    tied: bool
    dropout: bool = False
    softcapped: bool = False
    positions: int | None = None
    stored_bytes: int = 4
    known: bool = True

    @property
    def attention_window(self) -> int:
        """The sequence length up to which every attention layer sees all earlier tokens."""
        return min((stack.window for stack in self.stacks if stack.windowed), default=UNLIMITED)

    @property
    def has_encoder(self) -> bool:
        """Whether the model has an encoder besides the decoder."""
        return any(stack.encoder for stack in self.stacks)

    @property
    def fused_attention(self) -> bool:
        """Whether every attention is computed by one kernel that saves no scores."""
        return all(attention.fused for stack in self.stacks for attention in stack.layer.attention)

    def linear(self) -> Iterator[tuple[str, Linear]]:
        """Yield the module name and sizes of every linear layer except the output layer."""
        for stack in self.stacks:
            for number in range(stack.count):
                for part in stack.layer.linear:
                    yield stack.name_of(number, part), part
