"""Which parameters of a model are trained: all, all but the frozen ones, or adapters."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tunesmith.architecture.base_model import require_targets
from tunesmith.architecture.freezing import is_frozen, require_matches
from tunesmith.core.errors import RecipeError
from tunesmith.core.progress import log
from tunesmith.model.dtensor import is_dtensor
from tunesmith.model.experts import expert_parameters, require_adaptable, routers
from tunesmith.model.load import build_without_weights, without_adapter
from tunesmith.model.lora import use_compute_dtype
from tunesmith.model.new_tokens import trainable_token_indices
from tunesmith.recipe.tuning import FullTuning, LoraBase


def make_trainable(model: Any, tuning: FullTuning | LoraBase, *, seed: int, new_tokens: Sequence[int] = ()) -> Any:
    """Return the model with its trained parameters marked, for LoRA with adapters initialized from `seed`.

    Args:
        new_tokens: the tokens whose embedding rows are trained in addition to adapters.

    Raises:
        RecipeError: `tuning.target` or `tuning.freeze` names no module, or peft cannot adapt it or the experts.
    """
    if isinstance(tuning, FullTuning):
        # Marian computes its positions again instead of saving them, so training them would be lost.
        unsaved = set(model._keys_to_ignore_on_save or ())
        for name, weight in model.named_parameters():
            weight.requires_grad_(name not in unsaved)
        if tuning.freeze:
            _freeze(model, tuning.freeze)
        return model
    target = tuning.target if isinstance(tuning.target, str) else list(tuning.target)
    if not isinstance(target, str):
        require_targets(target, (name for name, module in model.named_modules() if hasattr(module, "weight")))
    experts = expert_parameters(model)
    for warning in require_adaptable(experts, tuning):
        log(f"warning: {warning}")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        target_modules=target,
        exclude_modules=(routers(model) or None) if isinstance(target, str) else None,
        target_parameters=(experts or None) if isinstance(target, str) else None,
        trainable_token_indices=trainable_token_indices(model, new_tokens),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        message = f"peft cannot adapt this model: {str(error).splitlines()[0]}"
        raise RecipeError(message, where="tuning", code="wrong-target") from error
    use_compute_dtype(adapted)
    return adapted


def check_freeze(folder: Path, patterns: Sequence[str]) -> None:
    """Raise RecipeError if one of these patterns names no module of the model in a folder, or if they name all."""
    model = build_without_weights(folder)
    if model is not None:
        _freeze(model, patterns)


def _freeze(model: Any, patterns: Sequence[str]) -> None:
    """Freeze the modules that these patterns name; raise RecipeError if one names none, or if they name all."""
    weights = dict(model.named_parameters(remove_duplicate=False))  # a tied weight has two names
    require_matches(patterns, weights)
    for name, weight in weights.items():
        if is_frozen(name, patterns):
            weight.requires_grad_(False)


def enable_activation_checkpointing(model: Any) -> None:
    """Save only the inputs of each layer, and recompute the rest in backward (Chen et al. 2016, arXiv:1604.06174).

    Raises:
        RecipeError: the architecture does not support it.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        where, code = "train.activation_checkpointing", "checkpointing-unsupported"
        raise RecipeError(str(error), where=where, hint="remove this key", code=code) from error


def trained_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the name and weight of each trained parameter, in a fixed order."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the number of trained and of all parameters; a byte that holds two 4-bit weights counts as two."""
    total = int(without_adapter(model).num_parameters())
    # transformers does not recognize sharded 4-bit weights, and counts one parameter per byte.
    total += sum(w.numel() for w in model.parameters() if is_dtensor(w) and w.dtype == torch.uint8)
    return sum(weight.numel() for _, weight in trained_parameters(model)), total
