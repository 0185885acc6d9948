"""The types of a GGUF file's tensors: which tensor gets which, and the bytes of its values."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from tunesmith.core.errors import RecipeError

if TYPE_CHECKING:  # the table of types is read without torch, to check options quickly
    import torch

_Q = GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class GgufType:
    """A type of GGUF files.

    Attributes:
        weights: the type of matrices.
        embeddings: the type of the embedding and the output layer. Errors in these change every token, so they have 8
            bits even if the other matrices have fewer; llama-quantize keeps them in a finer type, too.
        file: the number for the type in a file's metadata.
        is_lossy: whether it has so few bits that a tuned model's answers must be evaluated again.
    """

    weights: GGMLQuantizationType
    embeddings: GGMLQuantizationType
    file: LlamaFileType
    is_lossy: bool = False


GGUF_TYPES = {
    "f32": GgufType(_Q.F32, _Q.F32, LlamaFileType.ALL_F32),
    "f16": GgufType(_Q.F16, _Q.F16, LlamaFileType.MOSTLY_F16),
    "bf16": GgufType(_Q.BF16, _Q.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": GgufType(_Q.Q8_0, _Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": GgufType(_Q.Q5_1, _Q.Q8_0, LlamaFileType.MOSTLY_Q5_1, is_lossy=True),
    "q5_0": GgufType(_Q.Q5_0, _Q.Q8_0, LlamaFileType.MOSTLY_Q5_0, is_lossy=True),
    "q4_1": GgufType(_Q.Q4_1, _Q.Q8_0, LlamaFileType.MOSTLY_Q4_1, is_lossy=True),
    "q4_0": GgufType(_Q.Q4_0, _Q.Q8_0, LlamaFileType.MOSTLY_Q4_0, is_lossy=True),
}
"""{name on the command line: type} of the types that are written without another program."""

K_TYPES = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
"""The types that only `llama-quantize` writes."""

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_ALWAYS_F32 = ("position_embd.weight",)
_LARGEST_F16 = float(np.finfo(np.float16).max)
# The scale of a block is an f16: its largest value divided by this number.
_STEPS = {_Q.F16: 1, _Q.Q8_0: 127, _Q.Q5_0: 16, _Q.Q5_1: 31, _Q.Q4_0: 8, _Q.Q4_1: 15}


def tensor_type(name: str, shape: tuple[int, ...], file_type: GgufType) -> GGMLQuantizationType:
    """Return the type of a tensor: f32 for vectors and positions, and f16 if a row is no multiple of a block."""
    if len(shape) < 2 or name in _ALWAYS_F32 or "rope_f" in name:
        return _Q.F32
    wanted = file_type.embeddings if name in (EMBEDDING, OUTPUT) else file_type.weights
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else _Q.F16


def encode_rows(rows: "torch.Tensor", kind: GGMLQuantizationType, *, where: str) -> np.ndarray:
    """Return fp32 rows [n, width] or [n] in a type.

    Raises:
        RecipeError: a value is not finite, or too large for f16.
    """
    largest = float(rows.abs().max()) if rows.numel() else 0.0
    if not np.isfinite(largest):
        raise RecipeError("has values that are not finite", where=where, code="gguf-overflow")
    if largest / _STEPS.get(kind, 1) > _LARGEST_F16 and kind in _STEPS:
        message = f"has the value {largest:.3g}, but the largest of {kind.name.lower()} is {_LARGEST_F16:,.0f}"
        raise RecipeError(
            message, where=where, hint="use `--type bf16`, which has the range of f32", code="gguf-overflow"
        )
    encoded: np.ndarray = quantize(rows.numpy(), kind)
    return encoded
