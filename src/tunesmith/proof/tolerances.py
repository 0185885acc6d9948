"""How far an engine may be from the fp32 reference, by the type of its weights.

The limits are judgements on measurements of SmolLM2-135M, as GGUF files in llama.cpp and compared with transformers in
fp32; docs/proof.md has the numbers. Rounding to f16 changed no greedy answer, so answers in f32 and f16 must be equal,
unless the reference itself was undecided. Quantized weights change answers without making them worse, so they are
limited by the divergence per token, by whether answers end, and by the verdict.
"""

import re
from dataclasses import dataclass

from tunesmith.core.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The limits for one type of weights.

    Attributes:
        mean_kl: the mean Kullback-Leibler divergence per token, in nats.
        max_difference: the largest difference in the log-probability of a token of the reference's answers, in nats;
            None if it is not limited.
        max_gap: answers must be equal up to a token that the reference preferred by at most this many nats; None if
            answers need not be equal.
        max_unstopped: the share of the answers that ended in the reference, and need not end here.
    """

    mean_kl: float
    max_difference: float | None = None
    max_gap: float | None = None
    max_unstopped: float = 0.05

    def looser(self, other: "Tolerance") -> "Tolerance":
        """Return the looser of two tolerances."""
        return max(self, other, key=lambda tolerance: tolerance.mean_kl)


_F32 = Tolerance(mean_kl=1e-3, max_difference=0.05, max_gap=0.05)
_F16 = Tolerance(mean_kl=1e-3, max_difference=0.1, max_gap=0.05)
_BF16 = Tolerance(mean_kl=3e-3, max_difference=0.4, max_gap=0.2)
_8_BITS, _6_BITS, _4_BITS = Tolerance(mean_kl=0.02), Tolerance(mean_kl=0.05), Tolerance(mean_kl=0.2)

_NAMES = {
    "f32": _F32, "fp32": _F32, "float32": _F32,
    "f16": _F16, "fp16": _F16, "float16": _F16,
    "bf16": _BF16, "bfloat16": _BF16,
}  # fmt: skip
# GGUF's names: q8_0, q4_K_M, iq4_XS, tq2_0, mxfp4.
_QUANTIZED = re.compile(r"(?:i?q|tq|mxfp)([1-8])(?:_\w+)?")


def tolerance_for(type: str) -> Tolerance:
    """Return the limits for a type, named as in GGUF or as a dtype of torch.

    Raises:
        RecipeError: there is no such type.
    """
    name = type.lower()
    if name in _NAMES:
        return _NAMES[name]
    if match := _QUANTIZED.fullmatch(name):
        return tolerance_for_bits(int(match[1]))
    hint = "use f32, f16, bf16, or a type of GGUF such as q8_0 or q4_K_M"
    raise RecipeError(f"there is no type `{type}`", where="--type", hint=hint, code="unknown-type")


def tolerance_for_bits(bits: int) -> Tolerance:
    """Return the limits for weights with this number of bits."""
    return _8_BITS if bits >= 8 else _6_BITS if bits >= 6 else _4_BITS
