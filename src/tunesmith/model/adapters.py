"""Save, restore and open full weights or LoRA adapters (peft)."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.dtensor import shard_like
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.lora import use_compute_dtype
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.new_tokens import init_new_rows, resize_embeddings
from tunesmith.model.quantization import trained_quantization
from tunesmith.model.trainable import trained_parameters
from tunesmith.recipe.tuning import Quantization

_WEIGHTS = "adapter_model.safetensors"


def save_model(
    model: Any, folder: Path, *, base: str, revision: str | None = None, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a PEFT adapter or a transformers model. The same weights give the same bytes.

    Args:
        base: the reference of the base model, which the adapter's configuration names.
        revision: the commit of the base, if it is on the hub.
        weights: the state dict to save instead of the model's current one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
        return
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    # peft stores these as sets, whose order differs between processes.
    config.target_modules = sorted(config.target_modules)
    config.target_parameters = sorted(config.target_parameters) if config.target_parameters else None
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card, written by peft


def restore_weights(model: Any, folder: Path) -> None:
    """Load saved weights into a model that `make_trainable` returned; raise DamagedFile unless all of them match."""
    if isinstance(model, PeftModel):
        try:
            result = set_peft_model_state_dict(model, load_file(folder / _WEIGHTS))
        except KeyError as error:  # missing rows of new tokens
            raise _weights_mismatch(f"{error} is missing", folder) from error
        trained = {name for name, _ in trained_parameters(model)}  # without the rows of a tied output layer
        mismatched = [*result.unexpected_keys, *(key for key in result.missing_keys if key in trained)]
    else:
        # With transformers, because some weights have other names and shapes on disk than in memory (experts, heads).
        saved, report = type(model).from_pretrained(
            folder, dtype=model.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        mismatched = [*report["unexpected_keys"], *report["missing_keys"]]
        current = model.state_dict()
        model.load_state_dict({name: shard_like(weight, current[name]) for name, weight in saved.state_dict().items()})
    if mismatched:
        raise _weights_mismatch(sorted(mismatched)[:3], folder)


def _weights_mismatch(details: object, folder: Path) -> DamagedFile:
    return DamagedFile(f"these weights do not match the model: {details}", where=str(folder), code="weights-mismatch")


def open_model(
    model: ModelFolder,
    compute: ComputeConfig,
    *,
    dtype: torch.dtype | None = None,
    attention: str = "auto",
    merged: bool = False,
    quantization: Quantization | None = None,
    new_rows: Mapping[int, Sequence[int]] = {},
) -> Any:
    """Load a model or an adapter. The base of an adapter gets the quantization with which the adapter was trained.

    Args:
        merged: merge adapters into the weights, as W + (alpha / r) B A, to train on top of them. W is read from the
            base's files, even if the adapter was trained on a quantized W.
        quantization: quantize the weights, after merging.
        new_rows: embedding rows to add, as for `init_new_rows`.
    """
    settings: dict[str, Any] = {"dtype": dtype, "attention": attention}
    if model.base is None:
        opened = load_base(model, compute, quantization=quantization, **settings)
    elif quantization is not None:
        with tempfile.TemporaryDirectory() as folder:  # transformers can only quantize while it reads files
            on_cpu = replace(compute, device=torch.device("cpu"))
            open_model(model, on_cpu, merged=True, **settings).save_pretrained(folder)
            merged_model = ModelFolder(model.reference, Path(folder))
            opened = load_base(merged_model, compute, quantization=quantization, **settings)
    else:
        base_quantization = None if merged else trained_quantization(model)
        base = open_model(model.base, compute, merged=True, quantization=base_quantization, **settings)
        opened = attach_adapter(base, model.path)
        opened = opened.merge_and_unload(safe_merge=True) if merged else opened
    init_new_rows(opened, new_rows)
    return opened


def attach_adapter(model: Any, folder: Path, *, name: str = "default") -> Any:
    """Return a model with a saved adapter attached, for inference.

    Args:
        model: a model, possibly with adapters of other names, which stay attached.
        name: the adapter's name in peft.

    Raises:
        RecipeError: the adapter has no safetensors weights; peft would read a pickle or ask the hub.
        DamagedFile: the adapter does not match the model, or all its updates are zero.
    """
    if not (folder / _WEIGHTS).exists():
        code, hint = "no-weights", None
        if any(folder.glob("*.bin")):
            code, hint = "pickle", "its weights are a pickle (*.bin), which can run code; convert them"
        raise RecipeError(f"this adapter has no {_WEIGHTS}", where=str(folder), hint=hint, code=code)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            adapted = model
        else:
            resize_embeddings(model, trained_token_ids(folder))
            adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        with safe_open(folder / _WEIGHTS, "pt") as file:
            stored = {name for name in file.keys() if _is_trained(name)}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _weights_mismatch(" ".join(str(error).split())[:300], folder) from error
    # peft only warns of missing weights, and silently ignores unexpected ones.
    weights = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    loaded = {key for key in weights if _is_trained(key)}
    if mismatched := sorted(stored ^ loaded):
        raise _weights_mismatch(mismatched[:3], folder)
    if _is_zero({key: weights[key] for key in loaded}):
        raise DamagedFile("all updates of this adapter are zero", where=str(folder), code="zero-adapter")
    use_compute_dtype(adapted)
    return adapted


def _is_trained(name: str) -> bool:
    """Return whether a weight with this name belongs to LoRA: matrices, DoRA magnitudes, or rows of new tokens."""
    return "lora_" in name or "trainable_tokens_delta" in name


def _is_zero(weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether an adapter is plain LoRA and every update in it is zero."""
    others = [name for name in weights if "lora_A" not in name and "lora_B" not in name]
    ups = [weight for name, weight in weights.items() if "lora_B" in name]
    return bool(ups) and not others and not any(weight.any() for weight in ups)
