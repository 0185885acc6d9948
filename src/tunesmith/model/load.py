"""Weights from a local folder, on the right device, in the right precision. No pickle, no remote code."""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from tunesmith.architecture.base_model import refuse_pickle, refuse_quantized
from tunesmith.architecture.causality import require_causal
from tunesmith.architecture.weight_headers import stored_dtypes
from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.estimate.hardware import PrecisionSetting, choose_precision
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.quantization import bitsandbytes_config, disable_weight_repacking, require_quantization
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import Quantization

# Their activations go beyond what fp16 can hold; bf16, in which they were pretrained, has the range.
_BEYOND_FP16 = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
# What plain transformers has to know to let a saved model answer; how a model samples is left out.
_TOKENS_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ComputeConfig:
    """Where and in what matrices are multiplied."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """The name of `compute` in recipes."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
        return names[self.dtype]

    def autocast(self, weights: torch.dtype) -> AbstractContextManager[Any]:
        """Compute in `compute` where the weights are kept in more."""
        if weights == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_compute(asked: PrecisionSetting = "auto", *, quantized: bool = False) -> ComputeConfig:
    """Return the device and the precision to compute in.

    Args:
        quantized: the weights are kept in 4 or 8 bits.

    Raises:
        RecipeError: bf16 is asked for and the machine only imitates it.
    """
    if torch.cuda.is_available():
        device, has_bf16 = torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, has_bf16 = torch.device("cpu"), bool(torch.cpu._is_avx512_bf16_supported())
    precision = choose_precision(asked, device.type, has_bf16=has_bf16, quantized=quantized)
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise RecipeError("this GPU does not compute in bf16", where="model.precision", hint="use auto or fp32")
    return ComputeConfig(device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def compute_config(recipe: Recipe) -> ComputeConfig:
    """Return what `choose_compute` says for a recipe."""
    return choose_compute(recipe.model.precision, quantized=isinstance(recipe.tuning, Quantization))


def load_base(
    model: ModelFolder,
    compute: ComputeConfig,
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
        RecipeError: the folder holds no language model that transformers can read, or not all of one, or one that is
            not causal, or it cannot compute in this precision, or this machine cannot quantize.
        DamagedFile: a file of weights is not whole.
    """
    path = model.root.path
    refuse_pickle(path)
    require_causal(path)
    refuse_quantized(path)
    transformers_logging.disable_progress_bar()
    quantized: dict[str, Any] = {}
    if quantization is not None:
        require_quantization(quantization, compute.device, compute.dtype)
        settings = bitsandbytes_config(quantization, compute.dtype)
        quantized = {"quantization_config": settings, "device_map": {"": compute.device}}
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        _refuse_overflow(config, compute)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded, report = kind.from_pretrained(
            path,
            dtype=dtype or compute.dtype,
            attn_implementation=_attention(config) if attention == "auto" else attention,
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
            f"cannot be loaded as a language model: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    # transformers would draw these at random and only warn.
    lacking = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise RecipeError(
            f"lacks weights that its configuration asks for: {', '.join(lacking[:3])}",
            where=str(path),
            hint="it is not whole, or no language model",
        )
    _refuse_left_out_layers(loaded, report["unexpected_keys"], path)
    # Sampling settings and limits that a model brings along would make base and tuned answer by different rules.
    own = loaded.generation_config
    loaded.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _TOKENS_KEPT})
    disable_weight_repacking(loaded)
    if quantized:
        detach_from_mmap(loaded)
        return loaded
    return loaded.to(compute.device)


def _refuse_left_out_layers(loaded: Any, unused: Collection[str], path: Path) -> None:
    """Raise RecipeError if the files hold more layers than the configuration names, which transformers would drop.

    Other unused weights, such as the head of another task, do not change what the model answers.
    """
    known = {_NUMBER.sub("#", name) for name in loaded.state_dict()}
    layers = sorted(name for name in unused if _NUMBER.sub("#", name) in known)
    if layers:
        raise RecipeError(
            f"has weights of more layers than its configuration names: {', '.join(layers[:3])}",
            where=str(path / "config.json"),
            hint="compare its number of layers with that of the original model",
        )


def stored_dtype(model: ModelFolder) -> torch.dtype | None:
    """Return what all weights of a model's root folder are stored in; None where that is not one precision."""
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = stored_dtypes(model.root.path)
    return kinds.get(found.pop()) if len(found) == 1 else None


def detach_from_mmap(model: Any) -> None:
    """Copy the weights that are still memory of the mapped file, so that the file does not stay resident.

    Weights that were converted or put together are memory of their own. Copies of those would only leave their old
    places behind as free pieces.
    """
    for weight in model.parameters():
        of_the_file = not weight.untyped_storage().resizable()
        if weight.device.type == "cpu" and weight.dtype.is_floating_point and of_the_file:
            weight.data = weight.data.clone()


def _attention(config: Any) -> str | None:
    """Return eager where attention scores are soft-capped, which fused kernels leave out; else transformers' choice."""
    return "eager" if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) else None


def require_precision(model: ModelFolder, compute: ComputeConfig) -> None:
    """Raise RecipeError where a model overflows in what the machine computes in; no weights are read."""
    _refuse_overflow(
        AutoConfig.from_pretrained(model.root.path, local_files_only=True, trust_remote_code=False), compute
    )


def _refuse_overflow(config: Any, compute: ComputeConfig) -> None:
    if compute.dtype == torch.float16 and config.model_type in _BEYOND_FP16:
        raise RecipeError(
            f"{config.model_type} overflows in fp16 and would give NaN",
            where="model.precision",
            hint="use fp32, or bf16 where the machine has it",
        )


def without_adapter(model: Any) -> Any:
    """Return the model of transformers, which peft may have put adapters around."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def max_positions(model: Any) -> int:
    """Return how many tokens a row may have at most: what the model knows positions for."""
    return int(getattr(decoder_config(model), "max_position_embeddings", None) or 2**31)


def decoder_config(model: Any) -> Any:
    """Return the configuration of the text decoder, also where a model has other parts."""
    return model.config.get_text_config(decoder=True)
