"""The sizes of a model that memory follows from: what its layers multiply, and what they remember of a token."""

from collections.abc import Iterator
from dataclasses import dataclass

WITHOUT_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer [out, inner]; layers that name the same `reads` share their input.

    What is `attended` or `rectified` is kept already by what made it.
    """

    name: str
    out: int
    inner: int
    reads: str
    bias: bool = False

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return self.out * (self.inner + self.bias)


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention over `heads`; `queries` and `keys` are heads times width, of keys and values each.

    Attributes:
        fused: one kernel that keeps no scores; else scores [heads, length, length] are kept.
        scores: how many fp32 numbers and how many in the compute precision are kept of a score where not fused.
        across: looks at what an encoder has read.
        biased: adds a table to its scores, which is kept (T5's distances).
        norms: queries and keys are normed.
    """

    heads: int
    queries: int
    keys: int
    fused: bool = True
    scores: tuple[int, int] = (1, 2)
    across: bool = False
    biased: bool = False
    norms: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stack.

    Attributes:
        inner: width between the two halves of the multilayer perceptron.
        activated: how many tensors of that width are kept, beside what its second half reads.
        norms: how many norms over the hidden width.
        rms: norms are computed in fp32 of their own (RMSNorm), and of trained ones two numbers are kept.
        dropouts: how many dropouts over the hidden width, if the model has a rate.
        transposed: its matrices stand the other way round, so that the fast path leaves their adapters alone.
    """

    linear: tuple[Linear, ...]
    attention: tuple[Attention, ...]
    inner: int
    activated: int
    norms: int
    rms: bool
    dropouts: int = 2
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Equal layers one after another. `windows` of them reach over `window` tokens only."""

    prefix: str
    count: int
    layer: Layer
    encoder: bool = False
    windows: int = 0
    window: int = 0

    def name_of(self, number: int, part: Linear) -> str:
        """Return what a linear layer of the layer `number` is called in the model."""
        return f"{self.prefix}.{number}.{part.name}" if part.name else self.prefix


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of a model.

    Attributes:
        dropout: its own configuration drops something in training.
        capped: its logits are capped.
        stored_bytes: of a number in its files.
        known: its architecture is described; else what stands between linear layers is a guess.
    """

    parameters: int
    hidden: int
    vocabulary: int
    stacks: tuple[Stack, ...]
    tied: bool
    dropout: bool = False
    capped: bool = False
    positions: int | None = None
    stored_bytes: int = 4
    known: bool = True

    @property
    def reach(self) -> int:
        """The length up to which all attention layers see every earlier token."""
        return min((stack.window for stack in self.stacks if stack.windows), default=WITHOUT_LIMIT)

    @property
    def encodes(self) -> bool:
        """Whether there is an encoder beside the decoder."""
        return any(stack.encoder for stack in self.stacks)

    @property
    def fused(self) -> bool:
        """Whether all attention is one kernel that keeps no scores."""
        return all(sight.fused for stack in self.stacks for sight in stack.layer.attention)

    def linear(self) -> Iterator[tuple[str, Linear]]:
        """Yield every linear layer but the output with its name in the model."""
        for stack in self.stacks:
            for number in range(stack.count):
                for one in stack.layer.linear:
                    yield stack.name_of(number, one), one
