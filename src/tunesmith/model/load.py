"""Weights from a local folder, on the right device, in the right precision. No pickle, no remote code."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.quantized import bitsandbytes_config, require_quantization
from tunesmith.recipe.schema import Quantization


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and in what matrices are multiplied."""

    device: torch.device
    compute: torch.dtype

    @property
    def precision(self) -> str:
        """The name of `compute` in recipes."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
        return names[self.compute]

    def autocast(self, weights: torch.dtype) -> AbstractContextManager[Any]:
        """Compute in `compute` where the weights are kept in more."""
        if weights == self.compute:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def machine(precision: str = "auto", *, quantized: bool = False) -> Machine:
    """Return the device and the compute precision; `auto` is bf16 where the machine computes in it.

    Args:
        quantized: the weights are kept in 4 or 8 bits, so `auto` is fp16 on a GPU without bf16: whoever needs room for
            weights has none for activations in fp32.

    Raises:
        RecipeError: bf16 is asked for and the machine only imitates it.
    """
    if torch.cuda.is_available():
        device, has_bf16 = torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, has_bf16 = torch.device("cpu"), bool(torch.cpu._is_avx512_bf16_supported())
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise RecipeError("this GPU does not compute in bf16", where="model.precision", hint="use auto or fp32")
    use_bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    use_fp16 = quantized and precision == "auto" and device.type == "cuda" and not has_bf16
    return Machine(device, torch.bfloat16 if use_bf16 else torch.float16 if use_fp16 else torch.float32)


def load_base(
    model: ModelFolder,
    on: Machine,
    *,
    dtype: torch.dtype | None = None,
    attention: str = "auto",
    quantization: Quantization | None = None,
) -> Any:
    """Load the weights of a model's root folder.

    Args:
        dtype: precision the weights are kept in; default what the machine computes in.
        quantization: how linear layers but the output are kept instead.

    Raises:
        RecipeError: the folder holds no causal language model that transformers can read, or not all of one; or
            this machine cannot quantize.
        DamagedFile: a file of weights is not whole.
    """
    path = model.root.path
    _refuse_pickle(path)
    transformers_logging.disable_progress_bar()
    quantized: dict[str, Any] = {}
    if quantization is not None:
        require_quantization(quantization, on.device, on.compute)
        config = bitsandbytes_config(quantization, on.compute)
        quantized = {"quantization_config": config, "device_map": {"": on.device}}
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or on.compute,
            attn_implementation=_attention(path) if attention == "auto" else attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
            **quantized,
        )
    except SafetensorError as error:
        raise DamagedFile(f"has weights that are not whole: {error}", where=str(path)) from error
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"cannot be loaded as a causal language model: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    # transformers would draw these at random and only warn.
    lacking = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise RecipeError(
            f"lacks weights that its configuration asks for: {', '.join(lacking[:3])}",
            where=str(path),
            hint="it is not whole, or no causal language model",
        )
    # Sampling settings and limits that a model brings along would make base and tuned answer by different rules.
    loaded.generation_config = GenerationConfig()
    return loaded if quantized else loaded.to(on.device)


def _attention(path: Path) -> str | None:
    """Return eager where attention scores are soft-capped, which fused kernels leave out; else transformers' choice."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return "eager" if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) else None


def _refuse_pickle(path: Path) -> None:
    if not list(path.glob("*.safetensors")) and list(path.glob("*.bin")):
        raise RecipeError(
            "has its weights only as pickle (*.bin), which can run code",
            where=str(path),
            hint="convert it to safetensors",
        )


def most_positions(model: Any) -> int:
    """Return how many tokens a row may have at most: what the model knows positions for."""
    return int(getattr(decoder_config(model), "max_position_embeddings", None) or 2**31)


def decoder_config(model: Any) -> Any:
    """Return the configuration of the text decoder, also where a model has other parts."""
    return model.config.get_text_config(decoder=True)
