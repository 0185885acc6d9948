"""The experts of a mixture, whose weights transformers keeps as parameters [experts, ., .] instead of linear layers.

`target_modules` of peft means modules, so these weights would stay frozen without a word. They are adapted through
`target_parameters`, which gives every expert its own low-rank update.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tunesmith.core.errors import RecipeError
from tunesmith.model.load import build_without_weights
from tunesmith.recipe.tuning import LoraBase, QloraTuning


def expert_weights(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the name and weight of each parameter that holds all experts of a layer."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd):
            continue
        for parameter, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3 and weight.is_floating_point():
                yield f"{name}.{parameter}", weight


def expert_parameters(model: Any) -> list[str]:
    """Return the names of the experts' weights without the path of their layer, such as `experts.down_proj`."""
    return sorted({".".join(name.split(".")[-2:]) for name, _ in expert_weights(model)})


def routers(model: Any) -> list[str]:
    """Return the names, without the path of their layer, of linear layers that return more than a product.

    The routers of Llama 4 and Phi-MoE are subclasses of Linear that also return the chosen experts. peft would adapt
    them as linear layers, and the first forward pass would fail.
    """
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and type(module).__module__.startswith("transformers.")
        and type(module).forward is not torch.nn.Linear.forward
    }
    return sorted(names)


def check_experts(folder: Path, tuning: LoraBase) -> list[str]:
    """Return the warnings of `require_adaptable` for the model in a folder; none if it has no experts.

    Raises:
        RecipeError: the experts cannot be adapted with these settings.
    """
    model = build_without_weights(folder)
    return [] if model is None else require_adaptable(expert_parameters(model), tuning)


def require_adaptable(experts: list[str], tuning: LoraBase) -> list[str]:
    """Check that the experts with these names can be adapted; return warnings if they stay frozen or are not quantized.

    Raises:
        RecipeError: peft cannot adapt experts with these settings.
    """
    if not experts:
        return []
    names = ", ".join(experts)
    warnings = []
    if isinstance(tuning, QloraTuning):
        warnings.append(f"tuning.bits: the experts ({names}) are not quantized; bitsandbytes quantizes linear layers")
    if tuning.target != "all-linear":
        return [*warnings, f"tuning.target: the experts ({names}) stay frozen; only `all-linear` adapts them"]
    for key in ("dropout", "dora"):
        if getattr(tuning, key):
            message = "the model is a mixture of experts, and peft cannot adapt experts with this setting"
            hint = "remove the key, or name the modules to adapt in tuning.target; the experts then stay frozen"
            raise RecipeError(message, where=f"tuning.{key}", hint=hint, code="wrong-target")
    return warnings
