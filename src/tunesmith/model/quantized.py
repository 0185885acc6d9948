"""Weights in 4 or 8 bits by bitsandbytes: how they are asked for, and whether this machine has them."""

import importlib
import importlib.util
import logging
from typing import Any

import torch

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.schema import Quantization, Recipe


def quantization_of(recipe: Recipe) -> Quantization | None:
    """Return how the recipe keeps the base's weights; None where they are kept as they are."""
    return _plain(recipe.tuning) if isinstance(recipe.tuning, Quantization) else None


def trained_quantization(model: ModelFolder) -> Quantization | None:
    """Return how the weights below an adapter were kept when it was trained, as its card says."""
    stored = model.card.get("quantization")
    return Quantization.model_validate(stored) if stored else None


def _plain(quantization: Quantization) -> Quantization:
    return Quantization.model_validate({key: getattr(quantization, key) for key in Quantization.model_fields})


def bitsandbytes_config(quantization: Quantization, compute: torch.dtype) -> Any:
    """Return what transformers wants to be told.

    In 8 bits, LLM.int8() would leave columns with outliers out of the quantisation. Which they are follows from all
    tokens of a batch, so a row's result would depend on its neighbours, and a token's on those after it; the threshold
    of 0 rounds every token by itself.
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


def keep_order(model: Any) -> None:
    """Let bitsandbytes leave weights of 4 bits in their order: of divided ones every pass puts together new ones in it.

    It would bring them into that which some processors like best, once, and their scales with them, which stay.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def require_quantization(quantization: Quantization, device: torch.device, compute: torch.dtype) -> None:
    """Multiply a small quantised layer on a device, and raise RecipeError where that cannot be done."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "`method: qlora` needs bitsandbytes, which is not installed",
            where="tuning.method",
            hint="pip install 'tunesmith[qlora]'; or use `method: lora`",
        )
    # It warns for every product that it computes in fp16, which nobody can change, and that a faster kernel exists.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        layers: Any = importlib.import_module("bitsandbytes.nn")
        layer = (
            layers.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=0.0)
            if quantization.bits == 8
            else layers.Linear4bit(64, 64, bias=False, compute_dtype=compute, quant_type=quantization.code)
        ).to(device)
        with torch.inference_mode():
            works = bool(torch.isfinite(layer(torch.ones(2, 64, dtype=compute, device=device))).all())
    except Exception as error:  # whatever a platform lacks, each raises its own
        raise RecipeError(
            f"bitsandbytes cannot multiply {quantization.code} weights here: {(str(error).splitlines() or [''])[0]}",
            where="tuning.method",
            hint="use `method: lora`, or a machine that bitsandbytes supports",
        ) from error
    if not works:
        raise RecipeError(
            f"bitsandbytes multiplies {quantization.code} weights wrongly here",
            where="tuning.method",
            hint="use `method: lora`, or another version of bitsandbytes",
        )
