"""Load the weights of a local folder to the compute device in the right precision, without pickle or remote code."""

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

# Their activations exceed the range of fp16; they were pretrained in bf16.
_OVERFLOWS_FP16 = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
# The generation settings that plain transformers needs for a saved model; sampling settings are dropped.
_GENERATION_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ComputeConfig:
    """The device and the dtype to compute in."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """The dtype's name in `model.precision` of a recipe, such as `bf16`."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
        return names[self.dtype]

    def autocast(self, weights: torch.dtype) -> AbstractContextManager[Any]:
        """Return the context in which weights of another dtype are computed in this one."""
        if weights == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies in bf16, instead of emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def choose_compute(setting: PrecisionSetting = "auto", *, quantized: bool = False) -> ComputeConfig:
    """Return the device and the dtype to compute in.

    Args:
        quantized: the weights are quantized to 4 or 8 bits.

    Raises:
        RecipeError: bf16 is requested and the GPU only emulates it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    has_bf16 = has_native_bf16(device)
    precision = choose_precision(setting, device.type, has_bf16=has_bf16, quantized=quantized)
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        message, hint = "this GPU does not support bf16", "use auto or fp32"
        raise RecipeError(message, where="model.precision", hint=hint, code="precision-unsupported")
    return ComputeConfig(device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def compute_config(recipe: Recipe) -> ComputeConfig:
    """Return the device and the dtype that a recipe computes in."""
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
        dtype: the dtype of the weights; default the compute dtype.
        quantization: quantize all linear layers except the output layer.

    Raises:
        RecipeError: the folder contains no complete causal language model that transformers can load, the model
            overflows in this precision, or this machine cannot quantize.
        DamagedFile: a weight file is incomplete.
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
        loaded, report = _model_class(config).from_pretrained(
            path,
            dtype=dtype or compute.dtype,
            attn_implementation=_attention(config) if attention == "auto" else attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported by name below
            output_loading_info=True,
            **quantized,
        )
    except SafetensorError as error:
        raise DamagedFile(f"a weight file is incomplete: {error}", where=str(path)) from error
    except (OSError, ValueError, KeyError) as error:
        message = f"transformers cannot load this as a language model: {str(error).splitlines()[0]}"
        raise RecipeError(message, where=str(path), code="not-loadable") from error
    # transformers would only warn, and initialize these at random.
    missing = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if missing:
        message = f"weights are missing that the configuration requires: {', '.join(missing[:3])}"
        hint = "the folder is incomplete, or is not a language model"
        raise RecipeError(message, where=str(path), hint=hint, code="weights-missing")
    _refuse_unused_layers(loaded, report["unexpected_keys"], path)
    # A model's own sampling settings and limits would make base and tuned generate by different rules.
    own = loaded.generation_config
    loaded.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _GENERATION_TOKENS})
    disable_weight_repacking(loaded)
    if quantized:
        detach_from_mmap(loaded)
        return loaded
    return loaded.to(compute.device)


def build_without_weights(folder: Path) -> Any | None:
    """Return the model of a folder on the meta device; None if it cannot be built: loading it reports the reason."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return _model_class(config).from_config(config)
    except (OSError, ValueError, KeyError):
        return None


def _model_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _refuse_unused_layers(loaded: Any, unused: Collection[str], path: Path) -> None:
    """Raise RecipeError if the files hold more layers than the configuration, which transformers would ignore.

    Other unused weights, such as the head of another task, do not matter.
    """
    known = {_NUMBER.sub("#", name) for name in loaded.state_dict()}
    layers = sorted(name for name in unused if _NUMBER.sub("#", name) in known)
    if layers:
        message = f"the weights have more layers than the configuration: {', '.join(layers[:3])}"
        hint = "compare the number of layers with that of the original model"
        raise RecipeError(message, where=str(path / "config.json"), hint=hint, code="layer-mismatch")


def stored_dtype(model: ModelFolder) -> torch.dtype | None:
    """Return the dtype of all weights in a model's root folder; None if they have several."""
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    names = stored_dtypes(model.root.path)
    return dtypes.get(names.pop()) if len(names) == 1 else None


def detach_from_mmap(model: Any) -> None:
    """Copy the weights that still point into the memory-mapped file, so that the file does not stay resident.

    Weights that were converted or fused have their own memory. Copying those too would only fragment the heap.
    """
    for weight in model.parameters():
        is_mapped = not weight.untyped_storage().resizable()
        if weight.device.type == "cpu" and weight.dtype.is_floating_point and is_mapped:
            weight.data = weight.data.clone()


def _attention(config: Any) -> str | None:
    """Return eager if attention scores are soft-capped, which fused kernels ignore; otherwise transformers' choice."""
    return "eager" if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) else None


def require_precision(model: ModelFolder, compute: ComputeConfig) -> None:
    """Raise RecipeError if a model overflows in the compute dtype. Reads no weights."""
    config = AutoConfig.from_pretrained(model.root.path, local_files_only=True, trust_remote_code=False)
    _refuse_overflow(config, compute)


def _refuse_overflow(config: Any, compute: ComputeConfig) -> None:
    if compute.dtype == torch.float16 and config.model_type in _OVERFLOWS_FP16:
        message = f"{config.model_type} overflows in fp16 and would give NaN"
        hint = "use fp32, or bf16 if the machine supports it"
        raise RecipeError(message, where="model.precision", hint=hint, code="precision-unsupported")


def without_adapter(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def max_positions(model: Any) -> int:
    """Return the largest number of tokens in a row: the model's number of positions."""
    return int(getattr(decoder_config(model), "max_position_embeddings", None) or 2**31)


def decoder_config(model: Any) -> Any:
    """Return the configuration of the text decoder, also for multimodal models."""
    return model.config.get_text_config(decoder=True)
