"""Quantization to 4 or 8 bits with bitsandbytes: its settings, fixes for CPUs, and a check of this machine."""

import functools
import importlib
import importlib.util
import math
import warnings
from typing import Any

import torch
from torch import library

from tunesmith.core.errors import RecipeError, install_hint
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import Quantization

# The largest accepted error of a quantized product, relative to its norm: fp4 gives about 0.12 with random weights.
_MAX_ERROR = 0.4


def quantization_of(recipe: Recipe) -> Quantization | None:
    """Return how a recipe quantizes the base's weights; None if it does not."""
    if not isinstance(recipe.tuning, Quantization):
        return None
    return Quantization.model_validate({key: getattr(recipe.tuning, key) for key in Quantization.model_fields})


def trained_quantization(model: ModelFolder) -> Quantization | None:
    """Return the quantization of the base when an adapter was trained, from its card."""
    stored = model.card.get("quantization")
    return Quantization.model_validate(stored) if stored else None


def bitsandbytes_config(quantization: Quantization, compute: torch.dtype) -> Any:
    """Return the quantization settings for transformers.

    In 8 bits, LLM.int8() would exclude columns with outliers, which it finds among all tokens of a batch. A row's
    result would depend on other rows, and a token's on later tokens. A threshold of 0 quantizes each token separately.
    """
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quantization or "nf4",
        bnb_4bit_use_double_quant=quantization.is_double,
        bnb_4bit_compute_dtype=compute,
    )


def disable_weight_repacking(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place.

    On CPUs with AVX512-BF16, `Linear4bit` repacks its weight in the first forward pass in evaluation mode whose input
    needs no gradient. This changes the weight's shape and its state's type, drops double quantization and rounds the
    scales to bf16. The layer can no longer be trained, sharded or merged, and its outputs differ from those in
    training. Therefore all layers that `load_base` opens keep their original packing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@functools.cache
def _fix_cpu_dequantization() -> Any:
    """Fix bitsandbytes' CPU kernel for dequantizing 4-bit weights whose row width is not a multiple of a block (64).

    Blocks run over the flat weight, so one may span two rows. The AVX-512 code starts a new block at each row instead
    and silently uses the scales of other blocks. It is correct if the same bytes are passed as rows of one block.

    Returns:
        The registration, which must be kept: it ends when it is garbage-collected.
    """
    untyped: Any = library
    kernel = untyped.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantize(
        keys: Any, packed: torch.Tensor, scales: torch.Tensor, block: int, code: str, shape: list[int], out: torch.dtype
    ) -> Any:
        if shape[-1] % block == 0:
            return kernel.call_boxed(keys, packed, scales, block, code, shape, out)
        total = math.prod(shape)
        rows = [total // block, block] if total % block == 0 else [1, total]
        return kernel.call_boxed(keys, packed, scales, block, code, rows, out).view(shape)

    registration = untyped.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # torch warns that a kernel is replaced
        registration.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True)
    return registration


def require_bitsandbytes(setting: str, where: str, alternative: str) -> None:
    """Raise RecipeError if bitsandbytes, which a setting of the recipe needs, is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        message = f"`{setting}` needs bitsandbytes, which is not installed"
        hint = f"{install_hint('qlora')}; or use {alternative}"
        raise RecipeError(message, where=where, hint=hint, code="missing-package")


def require_quantization(quantization: Quantization, device: torch.device, compute: torch.dtype) -> None:
    """Raise RecipeError unless this machine multiplies a small quantized layer correctly on a device."""
    require_bitsandbytes("method: qlora", "tuning.method", "`method: lora`")
    try:
        layers: Any = importlib.import_module("bitsandbytes.nn")
        _fix_cpu_dequantization()
        if quantization.bits == 8:
            layer = layers.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=0.0)
        else:
            layer = layers.Linear4bit(64, 64, bias=False, compute_dtype=compute, quant_type=quantization.code)
        expected = layer.weight.detach().sum(1)
        with torch.inference_mode():
            actual = layer.to(device)(torch.ones(2, 64, dtype=compute, device=device)).float().cpu()
        works = bool((actual - expected).norm() < _MAX_ERROR * expected.expand_as(actual).norm())
    except Exception as error:  # each unsupported platform raises another type
        details = (str(error).splitlines() or [""])[0]
        message = f"bitsandbytes cannot multiply {quantization.code} weights on this machine: {details}"
        hint = "use `method: lora`, or a machine that bitsandbytes supports"
        raise RecipeError(message, where="tuning.method", hint=hint, code="quantization-unsupported") from error
    if not works:
        message = f"bitsandbytes multiplies {quantization.code} weights incorrectly on this machine"
        hint = "use `method: lora`, or another version of bitsandbytes"
        raise RecipeError(message, where="tuning.method", hint=hint, code="quantization-unsupported")
