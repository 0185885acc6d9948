"""What is trained and what is saved: full weights, or LoRA by peft."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tunesmith.architecture.base_model import require_targets
from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.dtensor import is_dtensor, shard_like
from tunesmith.model.load import ComputeConfig, load_base, without_adapter
from tunesmith.model.lora import use_compute_dtype
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.new_tokens import init_new_rows, resize_embeddings, trainable_token_indices
from tunesmith.model.quantization import trained_quantization
from tunesmith.recipe.tuning import FullTuning, LoraBase, Quantization

_WEIGHTS = "adapter_model.safetensors"


def make_trainable(model: Any, tuning: FullTuning | LoraBase, *, seed: int, new_tokens: Sequence[int] = ()) -> Any:
    """Return the model with its trained weights marked; adapters are drawn from `seed`.

    Args:
        new_tokens: tokens whose rows are trained beside adapters.

    Raises:
        RecipeError: a name of `tuning.target` matches no module, or peft cannot adapt it.
    """
    if isinstance(tuning, FullTuning):
        model.requires_grad_(True)
        return model
    target = tuning.target if isinstance(tuning.target, str) else list(tuning.target)
    if not isinstance(target, str):
        require_targets(target, (name for name, module in model.named_modules() if hasattr(module, "weight")))
    torch.manual_seed(seed)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        target_modules=target,
        trainable_token_indices=trainable_token_indices(model, new_tokens),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"cannot be adapted: {str(error).splitlines()[0]}", where="tuning") from error
    use_compute_dtype(adapted)
    return adapted


def enable_activation_checkpointing(model: Any) -> None:
    """Keep what enters each layer, and compute the rest again on the way back (Chen et al. 2016, arXiv:1604.06174).

    Raises:
        RecipeError: the architecture cannot.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(str(error), where="train.activation_checkpointing", hint="remove it") from error


def trained_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the name and weight of everything that is trained, in a fixed order."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return how many weights are trained, and how many there are; two of 4 bits share a byte, and count as two."""
    everything = int(without_adapter(model).num_parameters())
    # Those that are divided have lost the type by which they are known to be two.
    everything += sum(w.numel() for w in model.parameters() if is_dtensor(w) and w.dtype == torch.uint8)
    return sum(weight.numel() for _, weight in trained_parameters(model)), everything


def save_model(
    model: Any,
    folder: Path,
    *,
    base: str,
    revision: str | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a PEFT adapter or a transformers model. The same weights give the same bytes.

    Args:
        weights: its state, if that is not to be the one that it has now.
        base: the reference of the base model, which the adapter names.
        revision: the commit of the base on the hub, if it is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
        return
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    # peft holds these as sets, whose order changes from process to process.
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card that peft writes


def restore_weights(model: Any, folder: Path) -> None:
    """Put saved weights into a model that `make_trainable` returned; raise DamagedFile unless all fit."""
    if isinstance(model, PeftModel):
        try:
            result = set_peft_model_state_dict(model, load_file(folder / _WEIGHTS))
        except KeyError as error:  # rows of new tokens that are not there
            raise DamagedFile(f"does not fit the model: lacks {error}", where=str(folder)) from error
        ours = {name for name, _ in trained_parameters(model)}  # a tied output layer shares those of the embedding
        strange = [*result.unexpected_keys, *(key for key in result.missing_keys if key in ours)]
    else:
        # By transformers, because on disk some weights have other names and shapes than in memory (experts, heads).
        saved, report = type(model).from_pretrained(
            folder, dtype=model.dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        strange = [*report["unexpected_keys"], *report["missing_keys"]]
        mine = model.state_dict()
        model.load_state_dict({name: shard_like(weight, mine[name]) for name, weight in saved.state_dict().items()})
    if strange:
        raise DamagedFile(f"does not fit the model: {sorted(strange)[:3]}", where=str(folder))


def open_model(
    model: ModelFolder,
    compute: ComputeConfig,
    *,
    dtype: torch.dtype | None = None,
    attention: str = "auto",
    merged: bool = False,
    quantization: Quantization | None = None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """Load a model of any kind. An adapter comes on weights that are kept as they were when it was trained.

    Args:
        merged: fold adapters into the weights, to train on top of them: W + (alpha / r) B A, with W as it is in the
            base's own files, also where the adapter was trained on a quantized W.
        quantization: how the weights are kept, of a model that is to be trained or compared; it is merged before.
        new_tokens: tokens that the model does not know yet and gets rows for.
    """
    settings: dict[str, Any] = {"dtype": dtype, "attention": attention}
    if model.base is None:
        opened = load_base(model, compute, quantization=quantization, **settings)
    elif quantization is not None:
        with tempfile.TemporaryDirectory() as place:  # transformers quantizes what it reads from files
            open_model(model, replace(compute, device=torch.device("cpu")), merged=True, **settings).save_pretrained(
                place
            )
            whole = ModelFolder(model.reference, Path(place))
            opened = load_base(whole, compute, quantization=quantization, **settings)
    else:
        below = None if merged else trained_quantization(model)
        opened = attach_adapter(
            open_model(model.base, compute, merged=True, quantization=below, **settings), model.path
        )
        opened = opened.merge_and_unload(safe_merge=True) if merged else opened
    init_new_rows(opened, new_tokens)
    return opened


def attach_adapter(model: Any, folder: Path, *, name: str = "default") -> Any:
    """Return a model with a saved adapter on it, for inference.

    Args:
        model: a whole model, or one with adapters of other names, which stay.
        name: what peft is to call the adapter.

    Raises:
        RecipeError: the adapter has no safetensors weights; peft would read a pickle, or ask the hub.
        DamagedFile: a part of the adapter has no place in the model, or the adapter changes nothing.
    """
    if not (folder / _WEIGHTS).exists():
        hint = (
            "its weights are a pickle (*.bin), which can run code; convert it" if list(folder.glob("*.bin")) else None
        )
        raise RecipeError(f"is an adapter without {_WEIGHTS}", where=str(folder), hint=hint)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            adapted = model
        else:
            resize_embeddings(model, trained_token_ids(folder))
            adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        with safe_open(folder / _WEIGHTS, "pt") as file:
            stored = {name for name in file.keys() if _is_trained(name)}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise DamagedFile(f"does not fit the model: {' '.join(str(error).split())[:300]}", where=str(folder)) from error
    # peft only warns of weights that it did not find, and says nothing of those that found no place.
    weights = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    found = {key for key in weights if _is_trained(key)}
    if strange := sorted(stored ^ found):
        raise DamagedFile(f"does not fit the model: {strange[:3]}", where=str(folder))
    if _changes_nothing({key: weights[key] for key in found}):
        raise DamagedFile("changes nothing: its weights are all zero", where=str(folder))
    use_compute_dtype(adapted)
    return adapted


def _is_trained(name: str) -> bool:
    """Say whether a weight by this name is a part of LoRA: its matrices, DoRA's lengths, rows of new tokens."""
    return "lora_" in name or "trainable_tokens_delta" in name


def _changes_nothing(weights: Mapping[str, torch.Tensor]) -> bool:
    """Say whether an adapter has plain LoRA only, and every update in it is zero."""
    others = [name for name in weights if "lora_A" not in name and "lora_B" not in name]
    ups = [weight for name, weight in weights.items() if "lora_B" in name]
    return bool(ups) and not others and not any(weight.any() for weight in ups)
